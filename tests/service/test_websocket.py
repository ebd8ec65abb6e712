"""/ws in process: what a real server makes hard to time."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.catalog import Catalog
from service.engine import Engine
from service.errors import CapacityError, NotFiniteError, ShapeError
from service.key_ring import KeyRing, digest_of_key
from service.model import Model
from service.protocols import websocket
from service.protocols.access import Access
from service.protocols.asgi import Message
from service.protocols.binary import BinaryRows
from service.protocols.frames import (
    NO_HANDLE,
    Binding,
    Dtype,
    Flag,
    Send,
    decode_replies,
    decode_requests,
    encode_requests,
)
from service.protocols.seats import Seats
from service.protocols.uvicorn_sockets import Line, set_limits
from service.protocols.websocket import WebSocketApp
from service.wire import RowShape
from tests.service.test_engine import run, running

MAX_FRAME_BYTES = 4096
KEY = "carousel_" + "k" * 43
BODY = json.dumps({"session_id": "s", "x": [[0.5]]})


class Peer:
    """A client's end of one WebSocket under a server that does as uvicorn does."""

    def __init__(self, app: WebSocketApp, *headers: tuple[bytes, bytes]) -> None:
        self.sent: list[Message] = []
        self._news = asyncio.Event()
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})
        scope = {"type": "websocket", "path": "/ws", "headers": list(headers)}
        self.task = asyncio.create_task(app(scope, self._inbox.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self._news.set()
        if message["type"] in ("websocket.close", "websocket.http.response.body"):
            for _ in range(2):  # as uvicorn tells of its own close, and of the end
                self.leave()

    def say(self, frame: str | bytes) -> None:
        kind = "text" if isinstance(frame, str) else "bytes"
        self._inbox.put_nowait({"type": "websocket.receive", kind: frame})

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": 1005})

    async def hear(self, kind: str = "websocket.send") -> Message:
        """The next message of a kind that the server sends."""
        while not (found := [one for one in self.sent if one["type"] == kind]):
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 10)
        self.sent.remove(found[0])
        return found[0]

    async def told(self) -> Any:
        return json.loads((await self.hear())["text"])

    async def closed(self) -> tuple[int, str]:
        message = await self.hear("websocket.close")
        return message["code"], message["reason"]


async def with_app(
    catalog: Catalog,
    use: Callable[[WebSocketApp, Engine], Awaitable[None]],
    access: Access | None = None,
    **limits: Any,
) -> None:
    async with running(catalog, **limits) as engine:
        app = WebSocketApp(engine, MAX_FRAME_BYTES, access or Access(), Seats(8, 8), 0.01)
        await asyncio.wait_for(use(app, engine), 30)
        engine.drain()
        await app.closed()


def keys(tenant: str = "acme") -> Access:
    return Access(KeyRing(None, f'{digest_of_key(KEY.encode())} = {{ tenant = "{tenant}" }}'))


def test_a_key_that_does_not_come_in_time_ends_the_connection(
    sine: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that nobody holds a place without one."""
    monkeypatch.setattr(websocket, "KEY_WITHIN_S", 0.01)

    async def use(app: WebSocketApp, engine: Engine) -> None:
        peer = Peer(app)
        assert (await peer.told())["error"]["code"] == "unauthorized"
        code, reason = await peer.closed()
        assert (code, reason[:41]) == (1008, "no API key came within 0.01 s; expected {")
        await peer.task

    run(with_app(Catalog([sine]), use, keys()))


def test_a_drain_does_not_wait_for_a_key(sine: Model) -> None:
    """Whoever has shown none is told, and closed."""

    async def use(app: WebSocketApp, engine: Engine) -> None:
        peer = Peer(app)
        await peer.hear("websocket.accept")
        await asyncio.sleep(0)
        engine.drain()
        assert (await peer.told())["error"]["code"] == "draining"
        assert (await peer.closed())[0] == 1001
        await asyncio.wait_for(app.closed(), 1)
        late = Peer(app)
        assert (await late.hear("websocket.http.response.start"))["status"] == 503

    run(with_app(Catalog([sine]), use, keys()))


def test_a_drain_while_the_key_is_looked_up_is_not_missed(sine: Model) -> None:
    """The connection was accepted, and no frame of it was read."""

    async def use(app: WebSocketApp, engine: Engine) -> None:
        peer = Peer(app)
        await peer.hear("websocket.accept")
        peer.say(json.dumps({"api_key": KEY}))
        while not any("authenticated" in one.get("text", "") for one in peer.sent):
            await asyncio.sleep(0)
        engine.drain()
        assert await peer.told() == {"authenticated": True}
        error = await peer.told()
        assert (error["error"]["code"], error["frame"]) == ("draining", 1)
        assert (await peer.closed())[0] == 1001

    run(with_app(Catalog([sine]), use, keys()))


def test_a_key_that_is_another_tenants_now_ends_the_connection(sine: Model) -> None:
    """Handles and answers of one tenant are never another's."""
    access = keys()

    async def use(app: WebSocketApp, engine: Engine) -> None:
        peer = Peer(app, (b"x-api-key", KEY.encode()))
        peer.say(BODY)
        assert (await peer.told())["step"] == 1
        access._ring = keys("other")._ring
        peer.say(BODY)
        assert (await peer.told())["error"]["code"] == "forbidden"
        assert await peer.closed() == (
            1008,
            "this API key is now another tenant's; connect again",
        )

    run(with_app(Catalog([sine]), use, access))


@pytest.mark.parametrize("is_text", [True, False])
def test_a_frame_over_the_limit_ends_the_connection_under_any_server(
    sine: Model, is_text: bool
) -> None:
    """Uvicorn does not let one through; what came before is answered first."""

    async def use(app: WebSocketApp, engine: Engine) -> None:
        peer = Peer(app)
        peer.say(BODY)
        peer.say(" " * (MAX_FRAME_BYTES + 1) if is_text else bytes(MAX_FRAME_BYTES + 1))
        told = [await peer.hear(), await peer.hear()]
        (refused,) = [one for one in told if '"y"' not in one.get("text", "")]
        if is_text:
            error = json.loads(refused["text"])
        else:
            (reply,) = decode_replies(refused["bytes"])
            assert (reply.handle, reply.status) == (NO_HANDLE, 413)
            error = dict(reply.error or {})
        assert (error["error"]["code"], error["error"]["expected"]) == ("too_long", MAX_FRAME_BYTES)
        assert error["frame"] == 2
        assert (await peer.closed())[0] == 1009

    run(with_app(Catalog([sine]), use))


def test_a_bug_of_ours_is_1011_without_its_traceback(
    sine: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has it; the client does not."""

    class Broken(Access):
        calls = 0

        def admit(self, scope: Any) -> Any:
            self.calls += 1
            if self.calls > 1:
                raise ZeroDivisionError("secret detail")
            return super().admit(scope)

    async def use(app: WebSocketApp, engine: Engine) -> None:
        peer = Peer(app)
        peer.say(BODY)
        assert (await peer.told())["error"]["code"] == "internal"
        assert await peer.closed() == (1011, "the server failed; its log says why")

    run(with_app(Catalog([sine]), use, Broken()))
    assert "ZeroDivisionError: secret detail" in caplog.text


def test_a_drain_in_the_middle_of_a_frame_names_the_item(sine: Model) -> None:
    """Records before it are answered, it and those after it were not run."""

    async def use(app: WebSocketApp, engine: Engine) -> None:
        peer = Peer(app)
        sends = [Send(0, np.full((1, 1), 0.5)) for _ in range(100)]
        peer.say(encode_requests(sends, [Binding(0, "s")]))
        first = decode_replies((await peer.hear())["bytes"])
        engine.drain()
        await peer.closed()
        rest = [
            one for frame in peer.sent if "bytes" in frame for one in decode_replies(frame["bytes"])
        ]
        *done, last = [*first, *rest]
        assert [one.step for one in done] == list(range(1, len(done) + 1))
        assert 1 < len(done) < 100
        assert (last.status, last.frame, last.item) == (503, 1, len(done))

    run(with_app(Catalog([sine]), use, max_queue=4))


def test_whoever_leaves_while_others_wait_is_forgotten(sine: Model) -> None:
    """Its requests are not run; its place is free."""

    async def use(app: WebSocketApp, engine: Engine) -> None:
        peer = Peer(app)
        await peer.hear("websocket.accept")
        for _ in range(50):
            peer.say(BODY)
        peer.leave()
        await peer.task
        assert app._open == {}
        again = Peer(app)
        again.say(BODY)
        assert 1 <= (await again.told())["step"] <= 51
        again.leave()

    run(with_app(Catalog([sine]), use))


def test_a_closing_connection_is_cut_at_the_second_look(sine: Model) -> None:
    """One that has just begun to close may still send what was written to it."""

    class Transport:
        closing = False
        aborted = 0

        def is_closing(self) -> bool:
            return self.closing

        def abort(self) -> None:
            self.aborted += 1

    class Server:
        transport = Transport()

        def __init__(self) -> None:
            self.inbox: asyncio.Queue[Message] = asyncio.Queue()

        async def receive(self) -> Message:
            return await self.inbox.get()

    async def use(app: WebSocketApp, engine: Engine) -> None:
        server = Server()
        server.inbox.put_nowait({"type": "websocket.connect"})
        scope = {"type": "websocket", "path": "/ws", "headers": []}

        async def send(message: Message) -> None:
            """Nothing: the peer is dead."""

        task = asyncio.create_task(app(scope, server.receive, send))
        await asyncio.sleep(0.05)  # five looks
        assert server.transport.aborted == 0
        server.transport.closing = True
        while not server.transport.aborted:
            await asyncio.sleep(0.001)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert app._open == {}

    run(with_app(Catalog([sine]), use))


def test_uvicorn_is_told_and_another_server_named(caplog: pytest.LogCaptureFixture) -> None:
    """Where there is nothing to set, the log says so."""

    class Lifespan:
        config = SimpleNamespace(ws_max_size=1)

        async def receive(self) -> Message:
            return {}

    lifespan = Lifespan()
    set_limits(lifespan.receive, 100, 20.0)
    assert vars(lifespan.config) == {
        "ws_max_size": 100,
        "ws_per_message_deflate": False,
        "ws_ping_interval": 20.0,
        "ws_ping_timeout": 60.0,
    }

    async def receive() -> Message:
        return {}

    with caplog.at_level(logging.WARNING):
        set_limits(receive, 100, 20.0)
    assert "the server is not uvicorn" in caplog.text
    line = Line(receive)
    line.abort()
    assert not line.is_closing


def test_places_are_counted_by_tenant() -> None:
    """Those who have shown no key have a quarter, and take no more than their tenant's with one."""
    seats = Seats(8, 3)
    seats.take(None)
    seats.take(None)
    with pytest.raises(CapacityError, match="have shown no API key") as unknown:
        seats.take(None)
    assert unknown.value.data["limit"] == "unknown_connections"
    seats.know("a")
    for _ in range(2):
        seats.take("a")
    with pytest.raises(CapacityError, match="3 of your connections") as full:
        seats.take("a")
    assert full.value.data["limit"] == "tenant_connections"
    with pytest.raises(CapacityError, match="3 of your connections"):
        seats.know("a")
    for tenant in ("b", "b", "b", "c"):
        seats.take(tenant)
    with pytest.raises(CapacityError, match="8 connections are open") as all_taken:
        seats.take("d")
    assert all_taken.value.data["limit"] == "connections"
    seats.leave("b")
    seats.take("d")


NUMBERS, IDS = RowShape((2,), "float32"), RowShape((), "int64")


def rows_of(x: Any, dtype: Dtype) -> BinaryRows:
    return BinaryRows(decode_requests(encode_requests([Send(0, np.array(x))], dtype=dtype)), 0)


def test_binary_rows_are_what_json_rows_are() -> None:
    """float64 and int64, of the port's shape; integers may be numbers."""
    found = rows_of([[0.1, 2.0]], Dtype.FLOAT32).decode(NUMBERS)
    assert (found.dtype.name, found.tolist()) == ("float64", [[float(np.float32(0.1)), 2.0]])
    found = rows_of([[1, 2**40 + 1]], Dtype.INT64).decode(NUMBERS)
    assert (found.dtype.name, found.tolist()) == ("float64", [[1.0, float(2**40 + 1)]])
    for dtype in (Dtype.INT32, Dtype.INT64):
        found = rows_of([3, -1], dtype).decode(IDS)
        assert (found.dtype.name, found.tolist()) == ("int64", [3, -1])
    deep = rows_of(np.arange(8.0).reshape(2, 2, 2), Dtype.FLOAT64)
    assert deep.decode(RowShape((2, 2), "float32")).shape == (2, 2, 2)


@pytest.mark.parametrize(
    ("x", "dtype", "shape", "says"),
    [
        ([[1.0]], Dtype.FLOAT32, NUMBERS, r"`x` has shape \(1, 1\), expected \(time, 2\)"),
        ([[1.0] * 3], Dtype.FLOAT32, NUMBERS, r"`x` has shape \(1, 3\)"),
        (np.zeros((0, 2)), Dtype.FLOAT32, NUMBERS, "with at least one step"),
        ([[1.0]], Dtype.FLOAT32, IDS, "`x` is float32, expected int32 or int64"),
        ([[1, 2]], Dtype.INT32, IDS, r"`x` has shape \(1, 2\), expected \(time,\)"),
    ],
)
def test_binary_rows_of_another_shape_are_refused(
    x: Any, dtype: Dtype, shape: RowShape, says: str
) -> None:
    """In the words that JSON rows get."""
    with pytest.raises(ShapeError, match=says):
        rows_of(x, dtype).decode(shape)


def test_binary_rows_that_are_not_finite_are_refused() -> None:
    """With the row."""
    with pytest.raises(NotFiniteError, match="row 1 of `x`") as refused:
        rows_of([[0.0, 0.0], [0.0, np.inf]], Dtype.FLOAT32).decode(NUMBERS)
    assert refused.value.data["row"] == 1


def test_a_retry_says_again_that_the_session_was_created(sine: Model) -> None:
    """The same record, whatever its frame."""

    async def use(app: WebSocketApp, engine: Engine) -> None:
        peer = Peer(app)
        sends = [Send(0, np.full((1, 1), 0.5), step=0)]
        replies = []
        for _ in range(2):
            peer.say(encode_requests(sends, [Binding(0, "again")]))
            replies += decode_replies((await peer.hear())["bytes"])
        first, again = replies
        assert first.y is not None and again.y is not None
        assert first.y.tobytes() == again.y.tobytes()
        assert (first.flags, again.flags) == (Flag.CREATED, Flag.CREATED)
        assert (first.frame, again.frame) == (1, 2)
        peer.leave()

    run(with_app(Catalog([sine]), use))
