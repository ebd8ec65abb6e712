"""The native app in process: what a real server makes hard to time."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.catalog import Catalog
from service.engine import Engine
from service.errors import ForbiddenError, InternalError, StoreUnavailableError
from service.key_ring import Caller, KeyRing, digest_of_key
from service.metrics import Metrics
from service.model import Model
from service.protocols.access import Access
from service.protocols.asgi import ClientGone, Message
from service.protocols.native import NativeApp, read_request
from service.protocols.ndjson import split_lines
from service.session import SessionKey
from service.store.memory import MemoryStore
from tests.service.test_engine import Clock, Kept, run, running

MAX_BODY_BYTES = 4096
ANYBODY = Caller("")
LINE = {"session_id": "s", "x": [[0.5]]}


async def with_app(
    catalog: Catalog,
    use: Callable[[httpx.AsyncClient, Engine], Awaitable[None]],
    access: Access | None = None,
    **limits: Any,
) -> None:
    async with running(catalog, **limits) as engine:
        transport = httpx.ASGITransport(NativeApp(engine, MAX_BODY_BYTES, access))
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
        assert (stream.status_code, body_of(stream)["code"]) == (503, "draining")
        assert int(stream.headers["retry-after"]) > 0

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


def test_the_line_that_says_draining_is_the_last(sine: Model) -> None:
    """After the answers to the lines that were accepted, and only then."""

    async def scenario() -> None:
        engine = Engine(
            Catalog([sine]),
            MemoryStore(10, 60.0),
            max_batch=8,
            max_queue=8,
            max_steps=10,
        )  # not started: the lines are accepted, and wait
        lines = b"\n".join([json.dumps(LINE).encode()] * 3) + b"\n"
        client = Client({"type": "http.request", "body": lines, "more_body": True})
        app = NativeApp(engine, MAX_BODY_BYTES)
        task = asyncio.create_task(app(scope_of("/stream"), client.receive, client.send))
        while not client.sent:
            await asyncio.sleep(0)
        engine.drain()
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(client.sent) == 1
        engine.start()
        await asyncio.wait_for(task, timeout=10)
        body = b"".join(message["body"] for message in client.sent[1:])
        *answers, last = map(json.loads, body.splitlines())
        assert [answer["step"] for answer in answers] == [1, 2, 3]
        assert (last["error"]["code"], last["line"]) == ("draining", 4)
        await engine.close()

    run(scenario())


@pytest.mark.parametrize(
    ("why", "log"),
    [
        ("unable to perform operation on <TCPTransport>; the handler is closed", ""),
        ("Response content longer than Content-Length", "POST /predict failed"),
    ],
)
def test_a_reply_to_a_closed_connection_is_no_fault_and_any_other_is(
    sine: Model, caplog: pytest.LogCaptureFixture, why: str, log: str
) -> None:
    """uvloop says both by a RuntimeError."""

    async def refuse(message: Message) -> None:
        raise RuntimeError(why)

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        app = NativeApp(engine, MAX_BODY_BYTES)
        body = Client(whole_body(json.dumps(LINE).encode()))
        with suppress(RuntimeError):
            await app(scope_of("/predict"), body.receive, refuse)

    run(with_app(Catalog([sine]), use))
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == (
        [log] if log else []
    )


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
        return [
            pair
            async for lines in split_lines(client.receive, 8)
            for pair in zip(lines.numbers, lines.texts, strict=True)
        ]

    assert run(split()) == lines


def test_a_body_that_breaks_off_has_no_last_line() -> None:
    """Half a request is no request."""

    async def split() -> list[bytes | None]:
        client = Client({"type": "http.request", "body": b"a\nb", "more_body": True})
        client.hang_up()
        lines: list[bytes | None] = []
        with pytest.raises(ClientGone):
            async for together in split_lines(client.receive, 8):
                lines += together.texts
        return lines

    assert run(split()) == [b"a"]


def lines_of(messages: list[Message]) -> list[Any]:
    body = b"".join(message.get("body", b"") for message in messages)
    return [json.loads(line) for line in body.splitlines()]


FORECAST = {"session_id": "s", "horizon": 3}


def test_the_first_line_of_a_forecast_is_there_before_anything_is_run(sine: Model) -> None:
    """It is what the session's last reply said."""

    async def scenario() -> None:
        store = MemoryStore(10, 60.0)
        async with running(Catalog([sine]), store=Kept(store)) as engine:
            answer = await engine.predict(read_request(json.dumps(LINE).encode(), ANYBODY))
        engine = Engine(Catalog([sine]), store, max_batch=8, max_queue=8, max_steps=10)
        client = Client(whole_body(json.dumps(FORECAST).encode()))
        app = NativeApp(engine, MAX_BODY_BYTES)
        task = asyncio.create_task(app(scope_of("/forecast"), client.receive, client.send))
        while len(client.sent) < 3:
            await asyncio.sleep(0)
        start, first = lines_of(client.sent)
        assert (start["step"], first["step"]) == (1, 1)
        assert np.array_equal(np.float32(first["y"]), answer.y[0])
        assert not task.done()
        engine.start()
        await asyncio.wait_for(task, timeout=10)
        assert [line["step"] for line in lines_of(client.sent)] == [1, 1, 2, 3, 4]
        await engine.close()

    run(scenario())


def test_a_forecast_begins_its_reply_before_its_rows_are_read(sine: Model) -> None:
    """They may be many: the client sees where it is meanwhile."""

    async def scenario() -> None:
        engine = Engine(
            Catalog([sine]), MemoryStore(10, 60.0), max_batch=8, max_queue=8, max_steps=10
        )
        client = Client(whole_body(json.dumps({"horizon": 2, "x": [[0.5]] * 9}).encode()))
        app = NativeApp(engine, MAX_BODY_BYTES)
        task = asyncio.create_task(app(scope_of("/forecast"), client.receive, client.send))
        while len(client.sent) < 2:
            await asyncio.sleep(0)
        (start,) = lines_of(client.sent)
        assert (start["session_id"], start["step"], start["horizon"]) == (None, 0, 2)
        engine.start()
        await asyncio.wait_for(task, timeout=10)
        assert [line["step"] for line in lines_of(client.sent)] == [0, 9, 10, 11]
        await engine.close()

    run(scenario())


@pytest.mark.parametrize("is_started", [False, True])
def test_a_forecast_whose_client_hung_up_stops(
    sine: Model, caplog: pytest.LogCaptureFixture, is_started: bool
) -> None:
    """Whether it waits for its turn or runs; the engine is then empty."""
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        store = MemoryStore(10, 60.0)
        async with running(Catalog([sine]), store=Kept(store)) as engine:
            await engine.predict(read_request(json.dumps(LINE).encode(), ANYBODY))
        engine = Engine(
            Catalog([sine]),
            store,
            max_batch=8,
            max_queue=8,
            max_steps=10,
            max_forecast_steps=10**9,
        )
        client = Client(whole_body(json.dumps({**FORECAST, "horizon": 10**9}).encode()))
        app = NativeApp(engine, MAX_BODY_BYTES)
        if is_started:
            engine.start()
        task = asyncio.create_task(app(scope_of("/forecast"), client.receive, client.send))
        while len(client.sent) < (20 if is_started else 3):
            await asyncio.sleep(0)
        client.hang_up()
        await asyncio.wait_for(task, timeout=10)
        if not is_started:
            engine.start()
        await asyncio.wait_for(engine.close(), timeout=10)

    run(scenario())
    assert "POST /forecast: the client went away" in caplog.text


class Cut(Client):
    """A connection that breaks as the third part of the reply is sent."""

    async def send(self, message: Message) -> None:
        await super().send(message)
        if len(self.sent) >= 3:
            raise ConnectionResetError


def test_a_forecast_whose_reply_cannot_be_sent_stops(sine: Model) -> None:
    """Nobody reads it; the engine is then empty."""

    async def scenario() -> None:
        async with running(Catalog([sine]), max_forecast_steps=10**9) as engine:
            await engine.predict(read_request(json.dumps(LINE).encode(), ANYBODY))
            client = Cut(whole_body(json.dumps({**FORECAST, "horizon": 10**9}).encode()))
            app = NativeApp(engine, MAX_BODY_BYTES)
            with pytest.raises(ConnectionResetError):
                await app(scope_of("/forecast"), client.receive, client.send)
            await asyncio.wait_for(engine.close(), timeout=10)

    run(scenario())


def test_a_bug_in_a_forecast_is_its_last_line(
    sine: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its traceback, which the log has."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        await client.post("/predict", json=LINE)

        def fail(self: Model, chunks: Any, states: Any) -> Any:
            raise ZeroDivisionError("secret detail")

        monkeypatch.setattr(Model, "run", fail)
        reply = await client.post("/forecast", json=FORECAST)
        start, first, last = map(json.loads, reply.text.splitlines())
        assert (start["step"], first["step"]) == (1, 1)
        assert last["error"]["code"] == InternalError.code
        assert "secret" not in reply.text

    run(with_app(Catalog([sine]), use))
    assert "ZeroDivisionError: secret detail" in caplog.text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "missing required field `horizon`"),
        ({"session_id": "s"}, "missing required field `horizon`"),
        ({**FORECAST, "horizon": 0}, "`int` >= 1 - at `horizon`"),
        ({**FORECAST, "horizon": 2**63}, "`horizon` is 9223372036854775808, expected at most"),
        ({**FORECAST, "samples": 0}, "`int` >= 1 - at `samples`"),
        ({**FORECAST, "seed": -1}, "`int` >= 0 - at `seed`"),
        ({**FORECAST, "steps": 3}, "unknown field `steps`"),
        ({**FORECAST, "session_id": ""}, "length >= 1 - at `session_id`"),
    ],
)
def test_a_forecast_body_is_as_strict_as_any(
    sine: Model, body: dict[str, object], said: str
) -> None:
    """What was wrong, and the fields that there are."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        reply = await client.post("/forecast", json=body)
        assert (reply.status_code, body_of(reply)["code"]) == (400, "invalid_request")
        assert said in body_of(reply)["message"]

    run(with_app(Catalog([sine]), use))


# Who may call -----------------------------------------------------------------------------------

ACME, ZETA, ADMIN = (f"carousel_{name}_{'0' * 40}" for name in ("acme", "zeta", "admin"))
KEYS = "".join(
    f"{digest_of_key(key.encode())} = {{ {entry} }}\n"
    for key, entry in [
        (ACME, 'tenant = "acme"'),
        (ZETA, 'tenant = "zeta", max_sessions = 1'),
        (ADMIN, 'tenant = "ops", admin = true'),
    ]
)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def with_keys(
    catalog: Catalog,
    use: Callable[[httpx.AsyncClient, Engine], Awaitable[None]],
    ring: KeyRing | None = None,
    **limits: Any,
) -> None:
    ring = ring or KeyRing(None, KEYS)
    run(with_app(catalog, use, access=Access(ring), **limits))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": f"Basic {ACME}"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {ACME}x"},
        {"x-api-key": ACME[:-1]},
        {"x-api-key": ""},
        {"authorization": f"Bearer {ACME}x", "x-api-key": ACME},
    ],
)
def test_without_a_known_key_every_route_is_401_and_nothing_is_read(
    sine: Model, headers: dict[str, str]
) -> None:
    """But /readyz, which then says only whether the server is ready."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        for method, path in [
            ("POST", "/predict"),
            ("POST", "/stream"),
            ("GET", "/models"),
            ("GET", "/sessions/s"),
            ("DELETE", "/sessions/s"),
        ]:
            content = b"not JSON" if method == "POST" else None
            reply = await client.request(method, path, headers=headers, content=content)
            assert (reply.status_code, body_of(reply)["code"]) == (401, "unauthorized"), path
            assert reply.headers["www-authenticate"] == 'Bearer realm="carousel"'
        assert (await client.get("/readyz", headers=headers)).json() == {"status": "ready"}

    with_keys(Catalog([sine]), use)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {ACME}"},
        {"authorization": f"bEARER   {ACME} "},
        {"x-api-key": ACME},
        {"authorization": "Basic dXNlcg==", "x-api-key": ACME},
    ],
)
def test_a_key_comes_in_either_header(sine: Model, headers: dict[str, str]) -> None:
    """Whatever a proxy's own authorization says beside it."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        assert (await client.post("/predict", json=LINE, headers=headers)).status_code == 200
        assert (await engine.look_up(SessionKey("acme", "s"))).step == 1
        assert (await client.get("/readyz", headers=headers)).json()["models"] == [sine.reference]

    with_keys(Catalog([sine]), use)


def test_another_tenants_session_answers_as_one_that_does_not_exist(sine: Model) -> None:
    """Byte for byte but for the id, on every route; and neither hears of the other's steps."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        async def ask(method: str, path: str, key: str, **line: Any) -> httpx.Response:
            body = {"json": line} if line else {}
            return await client.request(method, path, headers=bearer(key), **body)  # type: ignore[arg-type]

        mine = await ask("POST", "/predict", ACME, **{**LINE, "session_id": "aaaa"})
        assert mine.json()["step"] == 1
        for method, path, line in [
            ("GET", "/sessions/{}", {}),
            ("DELETE", "/sessions/{}", {}),
            ("POST", "/predict", {"session_id": "{}", "x": [[0.5]], "step": 1}),
            ("POST", "/predict", {"session_id": "{}", "x": [[0.5]], "step": 0}),
            ("POST", "/stream", {"session_id": "{}", "x": [[0.5]], "step": 7}),
        ]:
            replies = []
            for name in ("aaaa", "bbbb"):
                named = {key: name if value == "{}" else value for key, value in line.items()}
                replies.append(await ask(method, path.format(name), ZETA, **named))
                await ask("DELETE", f"/sessions/{name}", ZETA)  # what began: she may have one
            hers, nobodys = replies
            assert hers.status_code == nobodys.status_code
            assert hers.content == nobodys.content.replace(b"bbbb", b"aaaa")
            assert hers.headers == nobodys.headers
        assert (await ask("GET", "/sessions/aaaa", ACME)).json()["step"] == 1

    with_keys(Catalog([sine]), use)


def test_a_tenant_may_have_as_many_sessions_as_its_key_says(sine: Model) -> None:
    """429 says whose limit it is and when to come back; others are not held up."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        async def begin(name: str, key: str) -> httpx.Response:
            line = {**LINE, "session_id": name}
            return await client.post("/predict", json=line, headers=bearer(key))

        assert (await begin("a", ZETA)).status_code == 200
        refused = await begin("b", ZETA)
        assert (refused.status_code, body_of(refused)["code"]) == (429, "overloaded")
        assert body_of(refused)["limit"] == "tenant_sessions"
        assert "your tenant holds 1 sessions" in body_of(refused)["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert (await begin("a", ZETA)).json()["step"] == 2
        assert (await begin("b", ACME)).status_code == 200
        await client.delete("/sessions/a", headers=bearer(ZETA))
        assert (await begin("b", ZETA)).status_code == 200

    with_keys(Catalog([sine]), use)


def test_a_tenants_share_of_the_queue_is_its_own(sine: Model) -> None:
    """429 for the one who fills it, an answer for the other."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        for name in "ab":
            line = json.dumps({**LINE, "session_id": name}).encode()
            await engine.submit(read_request(line, Caller("acme")))
        refused = await client.post("/predict", json=LINE, headers=bearer(ACME))
        assert (refused.status_code, body_of(refused)["limit"]) == (429, "tenant_queue")
        assert (await client.post("/predict", json=LINE, headers=bearer(ZETA))).status_code == 200

    with_keys(Catalog([sine]), use, max_queue_per_tenant=2)


def test_a_stream_of_a_key_that_is_revoked_ends_at_its_next_line(
    sine: Model, tmp_path: Path
) -> None:
    """Not when the client closes it."""
    path, clock = tmp_path / "keys.toml", Clock()
    path.write_text(KEYS)

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        async def lines() -> AsyncIterator[bytes]:
            for step in range(2):
                yield json.dumps({**LINE, "step": step}).encode() + b"\n"
                await asyncio.sleep(0.01)
                path.write_text("")
                clock.now += 1

        reply = await client.post("/stream", content=lines(), headers=bearer(ACME))
        first, second = [json.loads(line) for line in reply.text.splitlines()]
        assert first["step"] == 1
        assert (second["error"]["code"], second["line"]) == ("unauthorized", 2)

    with_keys(Catalog([sine]), use, KeyRing(path, monotonic=clock))


@pytest.mark.parametrize(
    ("access", "headers", "status"),
    [
        (Access(KeyRing(None, KEYS)), bearer(ADMIN), 200),
        (Access(KeyRing(None, KEYS)), bearer(ACME), 403),
        (Access(KeyRing(None, KEYS)), {}, 401),
        (Access(), {}, 200),
        (Access(loopback_only=False), {}, 403),
    ],
)
def test_what_changes_the_server_is_for_admins(
    sine: Model, access: Access, headers: dict[str, str], status: int
) -> None:
    """An admin's key; without keys whoever is on this machine, but not all the network."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            app = NativeApp(engine, MAX_BODY_BYTES, access)
            app._routes["/models/m/change"] = {"POST": app._models}
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                reply = await client.post("/models/m/change", headers=headers)
                assert reply.status_code == status
                if status == 403:
                    assert body_of(reply)["code"] == "forbidden"

    run(scenario())


@pytest.mark.parametrize(
    ("server", "is_admitted"),
    [
        (("127.0.0.1", 3000), True),
        (("127.8.9.1", 3000), True),
        (("::1", 3000), True),
        (("::ffff:127.0.0.1", 3000), True),
        (("/run/carousel.sock", None), True),
        (None, True),
        (("10.0.0.7", 3000), False),
        (("::", 3000), False),
        (("fe80::1", 3000), False),
        (("::ffff:10.0.0.7", 3000), False),
    ],
)
def test_without_keys_a_request_must_come_by_loopback(
    server: tuple[str, int | None] | None, is_admitted: bool
) -> None:
    """Whatever its headers say of where it came from."""
    scope = {"headers": [(b"x-forwarded-for", b"127.0.0.1")], "server": server}
    assert Access().is_admitted(scope) is is_admitted
    assert Access(loopback_only=False).is_admitted(scope)
    if not is_admitted:
        with pytest.raises(ForbiddenError, match="set CAROUSEL_API_KEYS_FILE"):
            Access().admit(scope)


@pytest.mark.parametrize(
    ("origin", "is_admitted"),
    [
        ("http://localhost:3000", True),
        ("http://127.0.0.1:3000", True),
        ("http://[::1]:3000", True),
        ("https://example.com", False),
        ("http://localhost.example.com:3000", False),
        ("http://10.0.0.7", False),
        ("null", False),
        ("http://[", False),
        ("", False),
    ],
)
def test_without_keys_a_page_from_elsewhere_is_refused(origin: str, is_admitted: bool) -> None:
    """A browser would send what it says to this machine."""
    scope = {"headers": [(b"origin", origin.encode())], "server": ("127.0.0.1", 3000)}
    assert Access().is_admitted(scope) is is_admitted
    assert Access(loopback_only=False).is_admitted(scope)


def test_live_sessions_that_cannot_be_counted_do_not_stop_the_metrics(
    sine: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of /metrics is answered, and the log says why."""

    class Uncountable(MemoryStore):
        def __init__(self, error: Exception) -> None:
            super().__init__(1, 60.0)
            self.error = error

        async def count(self, tenant: str | None = None) -> int:
            raise self.error

    async def scenario(error: Exception) -> None:
        async with running(Catalog([sine]), store=Uncountable(error)) as engine:
            await NativeApp(engine, MAX_BODY_BYTES).before_metrics()

    for error in (StoreUnavailableError("no store today"), ZeroDivisionError("a bug")):
        run(scenario(error))
    assert "the live sessions could not be counted: no store today" in caplog.messages
    assert "ZeroDivisionError: a bug" in caplog.text


def test_refusals_are_counted_by_reason(sine: Model) -> None:
    """Lines of a stream too; a full server's by what is full."""
    registry = CollectorRegistry()

    def count(reason: str) -> float | None:
        name = "carousel_requests_refused_total"
        return registry.get_sample_value(name, {"reason": reason})

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        await client.get("/models")
        await client.get("/predict", headers=bearer(ACME))
        await client.get("/sessions/s", headers=bearer(ACME))
        lines = "\n".join(json.dumps({**LINE, "session_id": name}) for name in "abc")
        await client.post("/stream", content=lines + "\nx", headers=bearer(ZETA))
        assert count("unauthorized") == count("session_not_found") == 1
        assert count("method_not_allowed") == count("invalid_json") == 1
        assert count("overloaded_tenant_sessions") == 2
        assert count("overloaded") is None

    with_keys(Catalog([sine]), use, metrics=Metrics(registry))
