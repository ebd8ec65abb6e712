"""Who may ask what, before anything of a request is read.

Rules
- Where there are API keys, every route that touches sessions or models wants one: `Authorization:
  Bearer KEY`, or `X-API-Key: KEY`. The key's tenant is part of every session key, so the sessions
  of others do not exist for its holder.
- Where there are none, callers are nobody's (tenant ""), and must have reached this server by its
  loopback address, unless the operator said that anybody may (CAROUSEL_ALLOW_ANONYMOUS). Nor may
  a web page from elsewhere, in a browser on this machine, ask on its user's behalf.
- What changes the server itself is for admins: keys with `admin`; and, where there are no keys,
  whoever is on this machine.
"""

import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit

from service.errors import ForbiddenError, UnauthorizedError
from service.key_ring import Caller, KeyRing
from service.protocols.asgi import Scope

HOW_TO_OPEN = (
    "set CAROUSEL_API_KEYS_FILE (`python -m service.keys new --tenant NAME --file FILE` makes a "
    "key), or CAROUSEL_ALLOW_ANONYMOUS=true where something in front decides who may call"
)
BEARER = b"bearer "


class Access:
    """The door of the native routes."""

    def __init__(
        self,
        ring: KeyRing | None = None,
        *,
        loopback_only: bool = True,
        max_sessions: int | None = None,
    ) -> None:
        """
        Args:
            ring: the keys; None: there are none, and the other two say what that means.
            loopback_only: whether callers without keys must be on this machine.
            max_sessions: live ones of all callers without a key; a ring has its own.
        """
        self._ring = ring
        self._loopback_only = loopback_only
        self._nobody = Caller("", is_admin=loopback_only, max_sessions=max_sessions)

    def admit(self, scope: Scope) -> Caller:
        """Who sends this request.

        Raises:
            UnauthorizedError: a key is needed, and there is none, or none that is known.
            ForbiddenError: there are no keys, and the request came over the network.
        """
        if self._ring is not None:
            return self._ring.find(_key_of(scope))
        if self._loopback_only and not (_came_by_loopback(scope) and _is_no_foreign_page(scope)):
            raise ForbiddenError(
                "this server has no API keys, so it answers on this machine only, and no web page "
                "from elsewhere; " + HOW_TO_OPEN
            )
        return self._nobody

    def is_admitted(self, scope: Scope) -> bool:
        try:
            self.admit(scope)
        except (UnauthorizedError, ForbiddenError):
            return False
        return True


def require_admin(caller: Caller) -> None:
    """ForbiddenError unless the caller may change what is served."""
    if not caller.is_admin:
        raise ForbiddenError(
            "this changes the server for all tenants, expected an API key with `admin = true`"
        )


def _key_of(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"authorization" and value[: len(BEARER)].lower() == BEARER:
            return bytes(value[len(BEARER) :].strip())
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            return bytes(value.strip())
    raise UnauthorizedError(
        "this server wants an API key, expected the header `Authorization: Bearer KEY` or "
        "`X-API-Key: KEY`"
    )


def _came_by_loopback(scope: Scope) -> bool:
    """By the address on which it came in: what no client and no proxy header can choose."""
    server = scope.get("server")
    return server is None or is_loopback(server[0])


def _is_no_foreign_page(scope: Scope) -> bool:
    """Browsers say in `Origin` whose page it is that sends; other clients have none."""
    for name, value in scope["headers"]:
        if name == b"origin":
            return _is_local_page(value.decode("latin-1"))
    return True


def _is_local_page(origin: str) -> bool:
    try:
        host = urlsplit(origin).hostname
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; the path of a socket counts as well."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return True
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
