"""What every reply of ours has, with an app that answers what it is told to."""

import asyncio
import gzip
from typing import Any

import pytest

from service.errors import ForbiddenError
from service.origin import origin_of
from service.protocols.access import Access
from service.protocols.around import Around
from service.protocols.asgi import Headers, Message, Receive, Scope, Send, send_bytes, send_json
from service.protocols.content_coding import MIN_BYTES

PAGE = b"https://app.example"
BIG = b"[" + b"0.125, " * MIN_BYTES + b"0]"


async def small(scope: Scope, receive: Receive, send: Send) -> None:
    await send_json(send, b"{}")


async def big(scope: Scope, receive: Receive, send: Send) -> None:
    await send_json(send, BIG)


def ask(
    app: Any = small, *headers: tuple[bytes, bytes], cors: tuple[str, ...] = (), **more: Any
) -> tuple[list[Message], Scope]:
    """What is sent, and the scope as the app saw it."""
    scope: Scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [*headers]}
    scope.update(more)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    asyncio.run(Around(cors).answer(app, scope, receive, send))
    return sent, scope


def values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for found, value in headers if found.lower() == name]


def headers_of(sent: list[Message]) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in sent[0]["headers"]}


def test_a_request_id_is_echoed_and_the_app_sees_the_same() -> None:
    """The client's own; of several the first."""
    sent, scope = ask(small, (b"x-request-id", b"job-7"), (b"x-request-id", b"job-8"))
    assert values(sent[0]["headers"], b"x-request-id") == [b"job-7"]
    assert origin_of(scope["headers"], "predict").request_id == "job-7"


@pytest.mark.parametrize("bad", [None, b"", b"a b", b"x" * 129, b"a\r\nset-cookie: b", b"<b>"])
def test_an_id_that_is_missing_or_unsafe_is_made_here(bad: bytes | None) -> None:
    """16 hex digits, another for each request, and the app sees it."""
    made = set()
    for _ in range(3):
        sent, scope = ask(small, *([] if bad is None else [(b"x-request-id", bad)]))
        (found,) = values(sent[0]["headers"], b"x-request-id")
        assert len(found) == 16 and int(found, 16) >= 0
        assert origin_of(scope["headers"], "").request_id == found.decode()
        made.add(found)
    assert len(made) == 3


def test_trace_context_is_kept_and_not_echoed() -> None:
    """W3C Trace Context names no header for replies."""
    parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    sent, scope = ask(small, (b"traceparent", parent), (b"tracestate", b"a=1"))
    origin = origin_of(scope["headers"], "predict")
    assert (origin.traceparent, origin.tracestate) == (parent.decode(), "a=1")
    assert headers_of(sent).keys() == {b"content-type", b"content-length", b"x-request-id"}


def test_a_websocket_has_an_id_too() -> None:
    """In the reply to its handshake."""

    async def accept(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})

    sent, _ = ask(accept, (b"x-request-id", b"job-7"), type="websocket")
    assert sent == [
        {"type": "websocket.accept", "headers": [(b"x-request-id", b"job-7")]},
        {"type": "websocket.send", "text": "hello"},
    ]


def test_a_big_reply_is_gzip_for_who_takes_it() -> None:
    """Level 1, whole, with its new length; a cache is told what it depends on, either way."""
    (start, body), _ = ask(big, (b"accept-encoding", b"gzip, deflate"))
    headers = headers_of([start])
    assert headers[b"content-encoding"] == b"gzip"
    assert values(start["headers"], b"content-length") == [str(len(body["body"])).encode()]
    assert len(body["body"]) < len(BIG) / 10
    assert gzip.decompress(body["body"]) == BIG
    assert headers[b"vary"] == b"Accept-Encoding"
    sent, _ = ask(big, (b"accept-encoding", b"gzip;q=0"))
    assert b"content-encoding" not in headers_of(sent)
    assert (sent[1]["body"], headers_of(sent)[b"vary"]) == (BIG, b"Accept-Encoding")


def test_small_replies_files_and_streams_are_left_alone() -> None:
    """A stream's parts leave one by one, each as it was."""

    async def file(scope: Scope, receive: Receive, send: Send) -> None:
        await send_bytes(send, BIG, b"application/octet-stream")

    seen: list[int] = []

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        kind = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        for _ in range(3):
            await send({"type": "http.response.body", "body": BIG, "more_body": True})
            seen.append(1)
        await send({"type": "http.response.body", "body": b""})

    for app, bodies in ((small, [b"{}"]), (file, [BIG]), (stream, [BIG, BIG, BIG, b""])):
        sent, _ = ask(app, (b"accept-encoding", b"gzip"))
        assert b"content-encoding" not in headers_of(sent)
        assert [message["body"] for message in sent[1:]] == bodies


def test_cors_is_off_unless_it_is_configured() -> None:
    """No word of it, and a preflight is the app's to refuse."""
    for headers in ([], [(b"origin", PAGE)]):
        sent, _ = ask(small, *headers, method="OPTIONS")
        assert not [name for name in headers_of(sent) if name.startswith(b"access-control")]


def preflight(*headers: tuple[bytes, bytes], cors: tuple[str, ...]) -> list[Message]:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("a preflight reached the app")

    asked = (b"access-control-request-method", b"POST")
    sent, _ = ask(never, *headers, asked, cors=cors, method="OPTIONS")
    return sent


def test_a_page_that_is_named_may_ask_and_read() -> None:
    """Its origin, never `*`, never credentials; what it may send, and read of a reply."""
    cors = ("https://app.example",)
    wanted = (
        b"authorization, x-api-key, content-type, content-encoding, idempotency-key, "
        b"x-request-id, last-event-id, traceparent"
    )
    sent = preflight((b"origin", PAGE), (b"access-control-request-headers", wanted), cors=cors)
    headers = headers_of(sent)
    assert sent[0]["status"] == 200
    assert headers[b"access-control-allow-origin"] == PAGE
    allowed = {one.strip() for one in headers[b"access-control-allow-methods"].split(b",")}
    assert allowed == {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE"}
    assert b"access-control-allow-credentials" not in headers
    assert b"Origin" in headers[b"vary"]
    assert len(headers[b"x-request-id"]) == 16
    sent, _ = ask(small, (b"origin", PAGE), cors=cors)
    headers = headers_of(sent)
    assert headers[b"access-control-allow-origin"] == PAGE
    assert headers[b"access-control-expose-headers"] == b"X-Request-ID, Retry-After"
    assert headers[b"vary"] == b"Origin"


@pytest.mark.parametrize(
    ("asked", "cors"),
    [
        ([(b"origin", b"https://evil.example")], ("https://app.example",)),
        ([(b"origin", b"null")], ("https://app.example",)),
        ([(b"origin", b"https://app.example.evil")], ("https://app.example",)),
        ([(b"origin", PAGE), (b"access-control-request-headers", b"cookie")], ("*",)),
    ],
)
def test_another_page_or_header_is_not_allowed(
    asked: list[tuple[bytes, bytes]], cors: tuple[str, ...]
) -> None:
    """400, which no browser takes for a yes."""
    assert preflight(*asked, cors=cors)[0]["status"] == 400
    if cors != ("*",):
        sent, _ = ask(small, *asked, cors=cors)
        headers = headers_of(sent)
        assert b"access-control-allow-origin" not in headers
        assert headers[b"vary"] == b"Origin"


def test_every_page_may_ask_where_that_is_configured() -> None:
    """`*` itself, and no credentials with it."""
    sent, _ = ask(small, (b"origin", PAGE), cors=("*",))
    assert headers_of(sent)[b"access-control-allow-origin"] == b"*"
    assert b"access-control-allow-credentials" not in headers_of(sent)
    assert (
        headers_of(preflight((b"origin", PAGE), cors=("*",)))[b"access-control-allow-origin"]
        == b"*"
    )


def test_a_big_reply_varies_with_both() -> None:
    """Two lines of Vary are one list."""
    sent, _ = ask(
        big, (b"origin", PAGE), (b"accept-encoding", b"gzip"), cors=("https://app.example",)
    )
    assert sorted(values(sent[0]["headers"], b"vary")) == [b"Accept-Encoding", b"Origin"]


def socket(origin: bytes | None, host: bytes = b"api.example:3000") -> Scope:
    headers = [(b"host", host), *([] if origin is None else [(b"origin", origin)])]
    return {"type": "websocket", "headers": headers, "server": ("127.0.0.1", 3000)}


def test_a_named_page_passes_the_door_of_a_server_without_keys_as_no_admin() -> None:
    """Others do not; this machine's own pages are who sits at it."""
    access = Access(cors_origins=["https://app.example"])
    assert access.admit(socket(None)).is_admin
    assert access.admit(socket(b"http://localhost:8080")).is_admin
    assert not access.admit(socket(PAGE)).is_admin
    with pytest.raises(ForbiddenError, match="no web page from elsewhere"):
        access.admit(socket(b"https://evil.example"))


@pytest.mark.parametrize("loopback_only", [True, False])
def test_whose_pages_may_open_a_websocket(loopback_only: bool) -> None:
    """Its own server's, those that are named, and, without keys, this machine's."""
    access = Access(loopback_only=loopback_only, cors_origins=["https://app.example"])
    for origin in (None, PAGE, b"http://api.example:3000"):
        access.admit_page(socket(origin))
    for origin in (b"https://evil.example", b"null", b"http://[", b"http://api.example"):
        with pytest.raises(ForbiddenError, match="may not open a WebSocket here"):
            access.admit_page(socket(origin))
    local = socket(b"http://localhost:8080")
    if loopback_only:
        access.admit_page(local)
    else:
        with pytest.raises(ForbiddenError):
            access.admit_page(local)
    Access(loopback_only=loopback_only, cors_origins=["*"]).admit_page(
        socket(b"https://any.example")
    )
