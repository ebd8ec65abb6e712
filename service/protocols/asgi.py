"""The few ASGI helpers that the protocols share: read a body within a limit, send a reply."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from service.errors import CarouselError, TooLongError
from service.wire import encode

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = b"application/json"


_CLOSED = "the handler is closed"  # what uvloop says of a transport that was closed


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


class Reply:
    """A `send` that raises ClientGone once the connection is closed, and takes whole replies.

    No abstract base class: `isinstance` asks one by a walk of 3 us.
    """

    async def __call__(self, message: Message) -> None:
        raise NotImplementedError

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send both messages of a reply; `headers` is this call's to change."""
        raise NotImplementedError


def to_who_stays(send: Send) -> Send:
    """`send` that raises ClientGone once the connection is closed.

    Of requests that a client sent in a row, uvicorn tells only the last one's app that it left;
    the replies to those before it, uvloop refuses by a RuntimeError.
    """
    if isinstance(send, Reply):
        return send

    async def send_or_leave(message: Message) -> None:
        try:
            await send(message)
        except RuntimeError as error:
            refuse_to_who_left(error)
            raise

    return send_or_leave


def refuse_to_who_left(error: RuntimeError) -> None:
    """ClientGone if that is what the error says."""
    if _CLOSED in str(error):
        raise ClientGone from None


async def read_body(scope: Scope, receive: Receive, max_body_bytes: int) -> bytes:
    """The whole body.

    Raises:
        TooLongError: it is longer, or says that it will be; not more than the limit was read.
        ClientGone: the client left before it had sent all.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > max_body_bytes:
            raise _too_long(int(value), max_body_bytes)
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size > max_body_bytes:
            raise _too_long(size, max_body_bytes)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_long(size: int, limit: int) -> TooLongError:
    return TooLongError(
        f"the body has {size} bytes or more, the server takes {limit}; send it in several requests",
        got=size,
        expected=limit,
    )


async def send_json(
    send: Send, body: bytes, status: int = 200, headers: Headers | None = None
) -> None:
    """One whole JSON reply."""
    await send_bytes(send, body, JSON, status, headers)


async def send_bytes(
    send: Send, body: bytes, content_type: bytes, status: int = 200, headers: Headers | None = None
) -> None:
    """One whole reply of any type."""
    all_headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    if headers:
        all_headers += headers
    if isinstance(send, Reply):
        await send.whole(status, all_headers, body)
        return
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})


async def send_error(
    send: Send, error: CarouselError, headers: Headers | None = None, body: bytes | None = None
) -> None:
    """An error, in the one shape that all native routes use, or another protocol's `body`."""
    extra = list(headers or [])
    if (retry_after_s := retry_after(error)) is not None:
        extra.append((b"retry-after", str(retry_after_s).encode()))
    if error.status == 401:
        extra.append((b"www-authenticate", b'Bearer realm="carousel"'))
    if error.status == 415:  # RFC 9110, 15.5.16
        extra.append((b"accept-encoding", b"gzip, deflate"))
    await send_json(send, encode(error.body()) if body is None else body, error.status, extra)


def retry_after(error: CarouselError) -> int | None:
    """Seconds after which the same request may succeed; None if it will not."""
    if error.status not in (429, 503):
        return None
    stated = error.data.get("retry_after_s")
    return stated if isinstance(stated, int) else RETRY_AFTER_S


RETRY_AFTER_S = 5  # a restart or a roll-out takes seconds
