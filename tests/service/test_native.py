"""The native app in process: what a real server makes hard to time."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from service.catalog import Catalog
from service.engine import Engine
from service.errors import InternalError
from service.key_ring import Caller
from service.model import Model
from service.protocols.asgi import ClientGone, Message
from service.protocols.native import NativeApp, read_request
from service.protocols.ndjson import split_lines
from service.session import SessionKey
from service.store.memory import MemoryStore
from tests.service.test_engine import run, running

MAX_BODY_BYTES = 4096
ANYBODY = Caller("")
LINE = {"session_id": "s", "x": [[0.5]]}


async def with_app(
    catalog: Catalog,
    use: Callable[[httpx.AsyncClient, Engine], Awaitable[None]],
    **limits: Any,
) -> None:
    async with running(catalog, **limits) as engine:
        transport = httpx.ASGITransport(NativeApp(engine, MAX_BODY_BYTES))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await use(client, engine)


def body_of(reply: httpx.Response) -> Any:
    return reply.json()["error"]


def test_a_full_queue_is_429_with_retry_after(sine: Model) -> None:
    """The same request may succeed a second later."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        await engine.submit(read_request(json.dumps(LINE).encode(), ANYBODY))
        reply = await client.post("/predict", json=LINE)
        assert (reply.status_code, body_of(reply)["code"]) == (429, "overloaded")
        assert reply.headers["retry-after"] == "1" == str(body_of(reply)["retry_after_s"])

    run(with_app(Catalog([sine]), use, max_queue=1))


def test_a_draining_server_is_503_for_new_requests_and_for_probes(sine: Model) -> None:
    """So that a load balancer sends them elsewhere."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        engine.drain()
        for reply in (await client.post("/predict", json=LINE), await client.get("/readyz")):
            assert (reply.status_code, body_of(reply)["code"]) == (503, "draining")
            assert int(reply.headers["retry-after"]) > 0
        stream = await client.post("/stream", content=json.dumps(LINE))
        assert [json.loads(line)["error"]["code"] for line in stream.text.splitlines()] == [
            "draining"
        ]

    run(with_app(Catalog([sine]), use))


class Faulty(MemoryStore):
    """A store with a bug."""

    async def get(self, keys: Any) -> Any:
        raise ZeroDivisionError("secret detail")


def test_a_bug_of_ours_is_500_without_its_traceback(
    sine: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has it; the client does not."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        for reply in (await client.get("/sessions/s"), await client.post("/predict", json=LINE)):
            assert (reply.status_code, body_of(reply)["code"]) == (500, InternalError.code)
            assert "secret" not in reply.text
        stream = await client.post("/stream", content=json.dumps(LINE))
        assert json.loads(stream.text)["error"]["code"] == InternalError.code

    run(with_app(Catalog([sine]), use, store=Faulty(1, 60.0)))
    assert "ZeroDivisionError: secret detail" in caplog.text


def test_head_is_answered_as_get(sine: Model) -> None:
    """Probes use it."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        assert (await client.head("/readyz")).status_code == 200
        assert (await client.head("/predict")).status_code == 405

    run(with_app(Catalog([sine]), use))


def scope_of(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "headers": [],
    }


class Client:
    """The two ends of one request, by hand: it sends `messages`, then waits, then hangs up."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)
        self._hung_up = asyncio.Event()
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def hang_up(self) -> None:
        self._hung_up.set()


def whole_body(body: bytes) -> Message:
    return {"type": "http.request", "body": body, "more_body": False}


def test_a_request_whose_client_hung_up_while_it_waited_is_not_run(
    sine: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is answered, and the session does not move."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        engine = Engine(
            Catalog([sine]),
            MemoryStore(10, 60.0),
            max_batch=8,
            max_queue=8,
            max_steps=10,
        )  # not started: whatever is submitted waits
        app = NativeApp(engine, MAX_BODY_BYTES)
        client = Client(whole_body(json.dumps(LINE).encode()))
        task = asyncio.create_task(app(scope_of("/predict"), client.receive, client.send))
        await asyncio.sleep(0)
        client.hang_up()
        await asyncio.wait_for(task, timeout=10)
        assert client.sent == []
        engine.start()
        answer = await engine.predict(read_request(json.dumps(LINE).encode(), ANYBODY))
        assert (answer.step, answer.created) == (1, True)
        await engine.close()

    run(scenario())
    assert "POST /predict: the client went away" in caplog.text


def test_a_stream_whose_client_hung_up_runs_nothing_more(sine: Model) -> None:
    """Lines that were read and had not started are forgotten."""

    async def scenario() -> None:
        engine = Engine(
            Catalog([sine]),
            MemoryStore(10, 60.0),
            max_batch=8,
            max_queue=8,
            max_steps=10,
        )
        lines = b"\n".join([json.dumps(LINE).encode()] * 5) + b"\n"
        client = Client({"type": "http.request", "body": lines, "more_body": True})
        app = NativeApp(engine, MAX_BODY_BYTES)
        task = asyncio.create_task(app(scope_of("/stream"), client.receive, client.send))
        while not client.sent:
            await asyncio.sleep(0)
        client.hang_up()
        await asyncio.wait_for(task, timeout=10)
        assert [message["type"] for message in client.sent] == ["http.response.start"]
        engine.start()
        assert (await engine.predict(read_request(json.dumps(LINE).encode(), ANYBODY))).step == 1
        assert (await engine.look_up(SessionKey("", "s"))).step == 1
        await engine.close()

    run(scenario())


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([], []),
        ([b""], []),
        ([b"a"], [(1, b"a")]),
        ([b"a\n"], [(1, b"a")]),
        ([b"a\nb"], [(1, b"a"), (2, b"b")]),
        ([b"a", b"b\n", b"c"], [(1, b"ab"), (2, b"c")]),
        ([b"a\r\n\r\n b \n"], [(1, b"a"), (3, b"b")]),
        ([b"\n\n\na"], [(4, b"a")]),
        ([b"12345678\n"], [(1, b"12345678")]),
        ([b"123456789\nb"], [(1, None), (2, b"b")]),
        ([b"12345", b"6789", b"0" * 99, b"\nb\n"], [(1, None), (2, b"b")]),
        ([b"a\n123456789"], [(1, b"a"), (2, None)]),
    ],
)
def test_a_body_is_split_into_lines_however_it_is_cut(
    chunks: list[bytes], lines: list[tuple[int, bytes | None]]
) -> None:
    """Numbered from 1, blank ones counted, those over 8 bytes not kept."""

    async def split() -> list[tuple[int, bytes | None]]:
        parts = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        client = Client(*parts, whole_body(b""))
        return [(line.number, line.text) async for line in split_lines(client.receive, 8)]

    assert run(split()) == lines


def test_a_body_that_breaks_off_has_no_last_line() -> None:
    """Half a request is no request."""

    async def split() -> list[bytes | None]:
        client = Client({"type": "http.request", "body": b"a\nb", "more_body": True})
        client.hang_up()
        lines = []
        with pytest.raises(ClientGone):
            async for line in split_lines(client.receive, 8):
                lines.append(line.text)
        return lines

    assert run(split()) == [b"a"]
