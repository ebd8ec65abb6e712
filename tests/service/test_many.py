"""Many sessions in one POST /predict, in process."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from service.catalog import Catalog
from service.engine import Engine
from service.errors import InvalidJsonError, RequestError, TooLongError
from service.job import Request
from service.model import Model
from service.protocols.many import is_array, split
from service.protocols.native import NativeApp, read_request
from service.session import SessionKey
from service.store.memory import MemoryStore
from service.wire import Array
from tests.service.test_engine import rows, run, running, whole
from tests.service.test_native import ANYBODY, Client, body_of, scope_of, whole_body

MAX_BODY_BYTES = 1 << 20


def with_client(
    catalog: Catalog, use: Callable[[httpx.AsyncClient, Engine], Awaitable[None]], **limits: Any
) -> None:
    async def scenario() -> None:
        async with running(catalog, **limits) as engine:
            transport = httpx.ASGITransport(NativeApp(engine, MAX_BODY_BYTES))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                await use(client, engine)

    run(scenario())


def body(session_id: str, x: Array, **more: object) -> dict[str, object]:
    return {"session_id": session_id, "x": x.tolist(), "model": "sine-cell", **more}


def y_of(replies: Sequence[dict[str, Any]]) -> Array:
    return np.concatenate([np.array(reply["y"], np.float32) for reply in replies])


def test_many_sessions_are_answered_in_the_order_they_came_in(
    sine: Model, catalog: Catalog
) -> None:
    """Of any model, and those of one session after each other; byte for byte as if sent alone."""
    x = rows(40)

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        bodies = [body(f"s{n}", x[at : at + 10]) for at in range(0, 40, 10) for n in range(3)]
        bodies.insert(
            5, {"session_id": "t", "x": rows(2, width=8).tolist(), "model": "series-lstm"}
        )
        reply = await client.post("/predict", json=bodies)
        assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
        replies = reply.json()
        assert [one["session_id"] for one in replies] == [one["session_id"] for one in bodies]
        assert replies.pop(5)["model"] == "series-lstm"
        for n in range(3):
            assert [one["step"] for one in replies[n::3]] == [10, 20, 30, 40]
            assert np.array_equal(y_of(replies[n::3]), whole(sine, x))
        alone = await client.post("/predict", json=body("alone", x[:10]))
        assert alone.json() == {**replies[0], "session_id": "alone"}

    with_client(catalog, use)


def test_an_array_fills_a_batch(sine: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is there when the engine takes the next one."""
    batches: list[int] = []
    real = Model.run

    def count(self: Model, chunks: Any, states: Any) -> Any:
        batches.append(len(chunks))
        return real(self, chunks, states)

    monkeypatch.setattr(Model, "run", count)

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        bodies = [body(f"s{n}", rows(1)) for n in range(64)]
        assert len((await client.post("/predict", json=bodies)).json()) == 64
        assert batches == [64]

    with_client(Catalog([sine]), use)


def test_what_is_refused_says_so_in_its_place_and_the_others_are_answered(catalog: Catalog) -> None:
    """With the status that it would have had alone, its session, and the step that it named."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        bodies: list[object] = [
            body("a", rows(1)),
            body("a", rows(1), step=7),
            body("b", rows(1), step=3),
            body("c", rows(2, width=2)),
            {"session_id": "d"},
            5,
            [body("e", rows(1))],
            body("a", rows(1), step=1),
        ]
        replies = (await client.post("/predict", json=bodies)).json()
        found = [
            (one.get("status", 200), one.get("error", {}).get("code"), one.get("session_id"))
            for one in replies
        ]
        assert found == [
            (200, None, "a"),
            (409, "step_conflict", "a"),
            (410, "session_gone", "b"),
            (400, "bad_shape", "c"),
            (400, "invalid_request", None),
            (400, "invalid_request", None),
            (400, "invalid_request", None),
            (200, None, "a"),
        ]
        assert (replies[1]["step"], replies[1]["error"]["expected"]) == (7, 1)
        assert "step" not in replies[3]
        assert replies[7]["step"] == 2
        alone = await client.post("/predict", json=bodies[1])
        assert alone.json()["error"]["code"] == replies[1]["error"]["code"]

    with_client(catalog, use)


@pytest.mark.parametrize(
    ("content", "status", "code", "message"),
    [
        (b"[]", 400, "invalid_request", "the array is empty"),
        (b" [ ] ", 400, "invalid_request", "the array is empty"),
        (b"[{}", 400, "invalid_json", "the body is not a strict JSON array"),
        (b'[{"session_id": "s", "x": [[NaN]]}]', 400, "invalid_json", "NaN and Infinity are not"),
        (b"[{}]]", 400, "invalid_json", "the body is not a strict JSON array"),
        (b"[" * 100_000, 400, "invalid_json", "the body is not a strict JSON array"),
        (b"[" + b"{}," * 1000 + b"{}]", 413, "too_long", "has 1001 bodies, the server takes 1000"),
        (b"[" + b" " * MAX_BODY_BYTES + b"{}]", 413, "too_long", "the server takes 1048576"),
    ],
)
def test_what_is_no_array_of_bodies_is_refused_whole(
    sine: Model, content: bytes, status: int, code: str, message: str
) -> None:
    """And nothing of it is run."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        reply = await client.post("/predict", content=content)
        assert (reply.status_code, body_of(reply)["code"]) == (status, code)
        assert message in body_of(reply)["message"]

    with_client(Catalog([sine]), use)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{}", False),
        (b" {}", False),
        (b"", False),
        (b"[", True),
        (b"\n\t [1]", True),
        (b"x", False),
    ],
)
def test_an_array_is_known_by_its_first_character(content: bytes, expected: bool) -> None:
    """Blanks before it do not count."""
    assert is_array(content) is expected


def test_a_body_that_is_not_utf_8_is_refused_alone(sine: Model) -> None:
    """As any other that cannot be read."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        good = json.dumps(body("s", rows(1))).encode()
        content = b'["\xff", {"session_id": "\xff", "x": [[1]]}, ' + good + b"]"
        replies = (await client.post("/predict", content=content)).json()
        assert [one.get("status", 200) for one in replies] == [400, 400, 200]

    with_client(Catalog([sine]), use)


def test_the_bodies_of_an_array_are_left_as_they_were() -> None:
    """Each is read by itself, by the reader of single bodies."""
    assert split(b'[{"x": [[1.50]]}, 5,"a"]', 3) == [b'{"x": [[1.50]]}', b"5", b'"a"']
    for raw, error in ((b"[]", RequestError), (b"[1,2]", TooLongError), (b"[1", InvalidJsonError)):
        with pytest.raises(error):
            split(raw, 1)


def test_more_than_there_is_room_for_waits_for_room(sine: Model) -> None:
    """A queue, or a tenant's share of it, that is shorter than the array refuses none of it."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        many = [[body(f"{who}{n}", rows(1)) for n in range(40)] for who in "ab"]
        replies = await asyncio.gather(*(client.post("/predict", json=bodies) for bodies in many))
        for reply in replies:
            assert [one["step"] for one in reply.json()] == [1] * 40

    with_client(Catalog([sine]), use, max_queue=40, max_queue_per_tenant=3, max_batch=2)


def test_a_full_server_refuses_those_that_would_begin(sine: Model) -> None:
    """429 each, as alone; the live ones go on."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        bodies = [body(name, rows(1)) for name in "abca"]
        replies = (await client.post("/predict", json=bodies)).json()
        assert [one.get("status", 200) for one in replies] == [200, 200, 429, 200]
        assert replies[2]["error"]["limit"] == "sessions"

    with_client(Catalog([sine]), use, max_sessions=2)


def test_a_draining_server_refuses_the_array(sine: Model) -> None:
    """503 as a whole, since nothing of it was run."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        engine.drain()
        reply = await client.post("/predict", json=[body("s", rows(1))])
        assert (reply.status_code, body_of(reply)["code"]) == (503, "draining")

    with_client(Catalog([sine]), use)


def unstarted(sine: Model, max_queue: int) -> Engine:
    """Whatever is submitted waits."""
    store = MemoryStore(10, 60.0)
    return Engine(Catalog([sine]), store, max_batch=8, max_queue=max_queue, max_steps=10)


def first() -> Request:
    return read_request(json.dumps(body("first", rows(1))).encode(), ANYBODY)


def test_a_server_that_drains_meanwhile_answers_what_it_has_accepted(sine: Model) -> None:
    """And refuses the rest, each in its place."""

    async def scenario() -> None:
        engine = unstarted(sine, max_queue=3)
        bodies = [body("s", rows(1))] * 2 + [body("t", rows(1))]
        await engine.submit(first())
        client = Client(whole_body(json.dumps(bodies).encode()))
        app = NativeApp(engine, MAX_BODY_BYTES)
        task = asyncio.create_task(app(scope_of("/predict"), client.receive, client.send))
        for _ in range(10):
            await asyncio.sleep(0)  # two are accepted, the third waits for room
        engine.drain()
        engine.start()
        await asyncio.wait_for(task, timeout=10)
        replies = json.loads(client.sent[1]["body"])
        assert [one.get("step") for one in replies] == [1, 2, None]
        assert (replies[2]["status"], replies[2]["error"]["code"]) == (503, "draining")
        await engine.close()

    run(scenario())


@pytest.mark.parametrize("max_queue", [3, 8], ids=["while it waits for room", "while all wait"])
def test_a_client_that_hangs_up_abandons_the_whole_array(sine: Model, max_queue: int) -> None:
    """Nobody is answered, no session moves, and no place in the queue stays taken."""

    async def scenario() -> None:
        engine = unstarted(sine, max_queue)
        bodies = [body(name, rows(1)) for name in "abca"][:max_queue]
        client = Client(whole_body(json.dumps(bodies).encode()))
        app = NativeApp(engine, MAX_BODY_BYTES)
        await engine.submit(first())
        task = asyncio.create_task(app(scope_of("/predict"), client.receive, client.send))
        for _ in range(10):
            await asyncio.sleep(0)
        client.hang_up()
        await asyncio.wait_for(task, timeout=10)
        assert client.sent == []
        engine.start()
        await engine.settle(SessionKey("", "first"))
        assert await engine._store.count() == 1
        assert engine._batcher.is_empty
        await engine.close()

    run(scenario())


def test_an_array_with_a_key_is_done_once(sine: Model) -> None:
    """Sent again it gets the same replies, byte for byte, and no session moves."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        headers = {"Idempotency-Key": "k"}
        bodies = [body(name, rows(2)) for name in "abc"] + [body("d", rows(1), step=0)]
        first = await client.post("/predict", json=bodies, headers=headers)
        again = await client.post("/predict", json=bodies, headers=headers)
        assert again.content == first.content
        bodies[1] = body("b", rows(3))
        mixed = (await client.post("/predict", json=bodies, headers=headers)).json()
        assert [one.get("status", 200) for one in mixed] == [200, 422, 200, 200]
        assert mixed[1]["error"]["code"] == "idempotency_conflict"
        for name, step in (("a", 2), ("b", 2), ("d", 1)):
            assert (await engine.look_up(SessionKey("", name))).step == step

    with_client(Catalog([sine]), use)


@pytest.mark.parametrize(
    ("steps", "statuses"),
    [
        ([None, None], [200, 400]),
        ([0, None], [200, 400]),
        ([None, 1], [200, 400]),
        ([0, 1], [200, 200]),
    ],
)
def test_a_key_does_not_tell_two_requests_of_one_session_apart(
    sine: Model, steps: list[int | None], statuses: list[int]
) -> None:
    """Their steps do; without them the second is refused, also when all is sent again."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        bodies = [body("a", rows(1), step=step) for step in steps]
        for _ in range(2 if 400 in statuses else 1):
            reply = await client.post("/predict", json=bodies, headers={"Idempotency-Key": "k"})
            assert [one.get("status", 200) for one in reply.json()] == statuses
        assert (await engine.look_up(SessionKey("", "a"))).step == statuses.count(200)

    with_client(Catalog([sine]), use)


def test_a_bug_of_ours_is_one_bodys_error(
    sine: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 in its place, without a traceback."""
    monkeypatch.setattr("service.protocols.native.encode_answer", lambda *a: 1 / 0)

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        reply = await client.post("/predict", json=[body("s", rows(1)), body("t", rows(1), step=9)])
        assert [one["status"] for one in reply.json()] == [500, 410]
        assert "division" not in reply.text

    with_client(Catalog([sine]), use)
    assert "ZeroDivisionError" in caplog.text
