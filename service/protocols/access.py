"""Who may ask what, before anything of a request is read.

Rules
- Where there are API keys, every route that touches sessions or models wants one: `Authorization:
  Bearer KEY`, or `X-API-Key: KEY`. The key's tenant is part of every session key, so the sessions
  of others do not exist for its holder.
- Where there are none, callers are nobody's (tenant ""), and must have reached this server by its
  loopback address, unless the operator said that anybody may (CAROUSEL_ALLOW_ANONYMOUS). Nor may
  a web page from elsewhere, in a browser on this machine, ask on its user's behalf, unless the
  operator named its origin (CAROUSEL_CORS_ORIGINS), and then it is no admin.
- Browsers ask no server's leave before a page opens a WebSocket, so there we look ourselves whose
  page it is, keys or not: `admit_page`.
- What changes the server itself is for admins: keys with `admin`; and, where there are no keys,
  whoever is on this machine.
"""

import ipaddress
from collections.abc import Collection
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
API_KEY = b"x-api-key"


class Access:
    """The door of the native routes."""

    def __init__(
        self,
        ring: KeyRing | None = None,
        *,
        loopback_only: bool = True,
        max_sessions: int | None = None,
        cors_origins: Collection[str] = (),
    ) -> None:
        """
        Args:
            ring: the keys; None: there are none, and the other two say what that means.
            loopback_only: whether callers without keys must be on this machine.
            max_sessions: live ones of all callers without a key; a ring has its own.
            cors_origins: whose pages may ask, beside this machine's; `*`: all.
        """
        self._ring = ring
        self._loopback_only = loopback_only
        self._origins = frozenset(cors_origins)
        self._nobody = Caller("", is_admin=loopback_only, max_sessions=max_sessions)
        self._page = Caller("", is_admin=False, max_sessions=max_sessions)

    def admit(self, scope: Scope) -> Caller:
        """Who sends this request.

        Raises:
            UnauthorizedError: a key is needed, and there is none, or none that is known.
            ForbiddenError: there are no keys, and the request came over the network.
        """
        if self._ring is not None:
            return self._ring.find(_key_of(scope))
        if not self._loopback_only:
            return self._nobody
        origin = _header(scope, b"origin")
        is_foreign = origin is not None and not _is_local_page(origin)
        if not _came_by_loopback(scope) or (is_foreign and not self._allows(origin)):
            raise ForbiddenError(
                "this server has no API keys, so it answers on this machine only, and no web page "
                "from elsewhere; " + HOW_TO_OPEN
            )
        return self._page if is_foreign else self._nobody

    def admit_page(self, scope: Scope) -> None:
        """See whose page opens this WebSocket; clients that are no browsers say nothing of it.

        Raises:
            ForbiddenError: it is of another origin than this server's, and none that is allowed.
        """
        origin = _header(scope, b"origin")
        if (
            origin is None
            or self._allows(origin)
            or (self._loopback_only and _is_local_page(origin))
            or origin.partition("://")[2] == _header(scope, b"host")
        ):
            return
        raise ForbiddenError(
            f"a page of {origin} may not open a WebSocket here; set CAROUSEL_CORS_ORIGINS={origin} "
            "if it should"
        )

    @property
    def wants_keys(self) -> bool:
        """Whether nobody is served without an API key."""
        return self._ring is not None

    def _allows(self, origin: str | None) -> bool:
        return origin in self._origins or "*" in self._origins

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


def carries_key(scope: Scope) -> bool:
    """Whether the request's headers have an API key, known or not."""
    return _find_key(scope) is not None


def _key_of(scope: Scope) -> bytes:
    key = _find_key(scope)
    if key is None:
        raise UnauthorizedError(
            "this server wants an API key, expected the header `Authorization: Bearer KEY` or "
            "`X-API-Key: KEY`"
        )
    return key


def _find_key(scope: Scope) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"authorization" and value[: len(BEARER)].lower() == BEARER:
            return bytes(value[len(BEARER) :].strip())
    for name, value in scope["headers"]:
        if name == API_KEY:
            return bytes(value.strip())
    return None


def _came_by_loopback(scope: Scope) -> bool:
    """By the address on which it came in: what no client and no proxy header can choose."""
    server = scope.get("server")
    return server is None or is_loopback(server[0])


def _header(scope: Scope, wanted: bytes) -> str | None:
    for name, value in scope["headers"]:
        if name == wanted:
            return str(value.decode("latin-1"))
    return None


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
