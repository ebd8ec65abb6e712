"""One RPC as the other protocols know a request: its headers, who sends it, where it comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message

from service.errors import CarouselError, RequestError
from service.key_ring import Caller
from service.origin import REQUEST_ID, TIMEOUT, Origin, origin_of
from service.protocols.access import Access
from service.protocols.asgi import Headers, Scope
from service.protocols.v2.rpc_status import Metadata, status_of

Context = grpc.aio.ServicerContext[Any, Any]

PROTOCOL = "grpc"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Bytes that are not the message that the method takes; gRPC would answer UNKNOWN."""

    name: str  # of that message

    def error(self) -> RequestError:
        return RequestError(f"the request is not a message {self.name}")


def reader_of(kind: type[Message]) -> Callable[[bytes], Message | Unreadable]:
    """What makes of a request's bytes its message."""

    def read(raw: bytes) -> Message | Unreadable:
        try:
            return kind.FromString(raw)
        except DecodeError:
            return Unreadable(kind.DESCRIPTOR.full_name)

    return read


class Call:
    """One RPC, before anything of its messages is looked at."""

    def __init__(self, context: Context, access: Access) -> None:
        self.context = context
        self.headers = _headers_of(context)
        self._origin = origin_of((one for one in self.headers if one[0] != TIMEOUT), PROTOCOL)
        self._access = access
        context.set_trailing_metadata(self._trailer)
        # A peer's address says by which address it came: only this machine reaches loopback's.
        self._scope: Scope = {"headers": self.headers, "server": _host_of(context.peer())}

    @property
    def origin(self) -> Origin:
        """With what is left of its time: gRPC says that by a deadline, and not in a header."""
        return self._origin.within(self.context.time_remaining())

    def header(self, name: bytes) -> str | None:
        """The first of that name."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)

    def caller(self) -> Caller:
        """Who sends it, asked anew each time: in a long stream a key may expire.

        Raises:
            UnauthorizedError, ForbiddenError: as `Access.admit`.
        """
        return self._access.admit(self._scope)

    async def refuse(self, error: CarouselError) -> NoReturn:
        """End the RPC with an error's status."""
        code, details, hints = status_of(error)
        await self.context.abort(code, details, (*hints, *self._trailer))

    @property
    def _trailer(self) -> Metadata:
        """What every reply has, as over HTTP."""
        return ((REQUEST_ID.decode(), self._origin.request_id),)


def _headers_of(context: Context) -> Headers:
    """The metadata; names are in lower case, values bytes where their names end in -bin."""
    return [
        (name.encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in context.invocation_metadata() or ()
    ]


def _host_of(peer: str) -> tuple[str, int] | None:
    """Of `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`; None: a socket of this machine."""
    family, _, address = unquote(peer).partition(":")
    if family not in ("ipv4", "ipv6"):
        return None
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
