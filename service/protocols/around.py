"""What every reply of ours has, whichever app of ours gives it; the host's pages have their own.

Rules
- Each request has an id: the client's `X-Request-ID` where it is safe to repeat (service/origin.py
  says which are), else one made here. Every reply says it in `X-Request-ID`, errors and preflights
  too, and whoever reads the request's headers finds it there, so that logs and spans have the same.
- Pages of other origins: nothing is said of them unless CAROUSEL_CORS_ORIGINS names some, and then
  Starlette's CORSMiddleware says it. Never credentials: an API key is no cookie.
- Whole JSON replies of some size leave as gzip where the client takes it
  (service/protocols/content_coding.py).

- Where CAROUSEL_ACCESS_LOG=true, the log has a line for each when it has ended.

The order: the id is outermost, so a preflight has one too; CORS next; then the app. Nothing waits
for anything: of a stream only the first message is touched.

It takes some 3 us of a core (8 with CORS on).
Not Starlette's GZipMiddleware: it makes a responder and a `Headers` for each request, however small
its reply (6.4 us), and takes `gzip;q=0` for a yes.
"""

import time
from collections.abc import Collection

from starlette.middleware.cors import CORSMiddleware

from service.logs import about, access, writes_access_lines
from service.origin import REQUEST_ID, new_request_id, request_id_of
from service.protocols.asgi import (
    App,
    Headers,
    Message,
    Receive,
    Reply,
    Scope,
    Send,
    refuse_to_who_left,
)
from service.protocols.content_coding import MIN_BYTES, accepts_gzip, gzipped, is_worth_it
from service.protocols.one_write import send_in_one_write

APP = "carousel.app"  # where a request's scope has the app that answers it, on its way through CORS
VARY = (b"vary", b"Accept-Encoding")
STARTS = ("http.response.start", "websocket.accept", "websocket.http.response.start")

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
REQUEST_HEADERS = (
    "Authorization",
    "X-API-Key",
    "Content-Type",
    "Content-Encoding",
    "Idempotency-Key",
    "Last-Event-ID",
    "X-Request-ID",
    "traceparent",
    "tracestate",
)
REPLY_HEADERS = ("X-Request-ID", "Retry-After")  # that a page may read, beside the safe ones


class Around:
    """Stands around our apps."""

    def __init__(self, cors_origins: Collection[str] = ()) -> None:
        """`cors_origins`: whose pages may ask, as browsers write them; `*`: all; none: CORS is off.

        A browser asks before it lets a page of the internet reach this machine, or one of a local
        network; whoever named the page's origin has allowed that too.
        """
        self._cors = (
            CORSMiddleware(
                _answer,
                allow_origins=cors_origins,
                allow_methods=METHODS,
                allow_headers=REQUEST_HEADERS,
                expose_headers=REPLY_HEADERS,
                allow_private_network=True,
            )
            if cors_origins
            else None
        )
        self._has_access_lines = writes_access_lines()

    async def answer(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Let `app` answer an HTTP request or a WebSocket."""
        request_id = request_id_of(scope["headers"])
        if request_id is None:
            request_id = new_request_id()
            scope["headers"] = [(REQUEST_ID, request_id), *scope["headers"]]
        reply = _Reply(scope, send, request_id)
        if self._cors is not None:
            scope[APP] = app
            app = self._cors
        if not self._has_access_lines:
            await app(scope, receive, reply)
            return
        began_s = time.perf_counter()
        try:
            await app(scope, receive, reply)
        finally:
            access.info(
                "http",
                extra=about(
                    method=scope.get("method", "WEBSOCKET"),
                    path=scope["path"],
                    status=reply.status,
                    request_id=request_id.decode(),
                    duration_ms=round((time.perf_counter() - began_s) * 1e3, 3),
                ),
            )


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await scope[APP](scope, receive, send)


class _Reply(Reply):
    """What one request's `send` becomes."""

    __slots__ = ("_held", "_request_id", "_scope", "_send", "status")

    def __init__(self, scope: Scope, send: Send, request_id: bytes) -> None:
        self._scope = scope
        self._send = send
        self._request_id = request_id
        self._held: Message | None = None  # the start of a reply that will be gzip
        self.status: int | None = None  # None: nothing was sent

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        headers.append((REQUEST_ID, self._request_id))
        self.status = status
        if len(body) >= MIN_BYTES and is_worth_it(headers):
            headers.append(VARY)
            if accepts_gzip(self._scope["headers"]):
                body = await gzipped(body)
                headers = _as_gzip(headers, len(body))
        start = {"type": "http.response.start", "status": status, "headers": headers}
        try:
            await send_in_one_write(self._send, start, {"type": "http.response.body", "body": body})
        except RuntimeError as error:
            refuse_to_who_left(error)
            raise

    async def __call__(self, message: Message) -> None:
        if message["type"] in STARTS:
            headers = [*message.get("headers", ()), (REQUEST_ID, self._request_id)]
            message["headers"] = headers
            self.status = message.get("status", 101)  # a WebSocket that is accepted has none
            if is_worth_it(headers):
                headers.append(VARY)
                if accepts_gzip(self._scope["headers"]):
                    self._held = message
                    return
        elif self._held is not None:
            start, self._held = self._held, None
            if not message.get("more_body", False):
                message["body"] = await gzipped(message["body"])
                start["headers"] = _as_gzip(start["headers"], len(message["body"]))
            await self._pass_on(start)
        await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        try:
            await self._send(message)
        except RuntimeError as error:
            refuse_to_who_left(error)
            raise


def _as_gzip(headers: Headers, size: int) -> Headers:
    """The headers of a reply whose body is gzip now, of so many bytes."""
    return [
        *(one for one in headers if one[0] != b"content-length"),
        (b"content-length", b"%d" % size),
        (b"content-encoding", b"gzip"),
    ]
