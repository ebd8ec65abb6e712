"""The v2 app in process: what a real server makes hard to time, and who may ask."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from service.catalog import Catalog
from service.engine import Engine
from service.errors import ArtifactError
from service.key_ring import KeyRing
from service.model import Model
from service.protocols.access import Access
from service.protocols.v2.http_app import V2App
from service.protocols.v2.metadata import EXTENSIONS, VERSION, Limits, repository_index
from service.session import SessionKey
from service.store.memory import MemoryStore
from tests.conftest import ROOT
from tests.service.test_engine import run, running
from tests.service.test_native import (
    ACME,
    KEYS,
    ZETA,
    Client,
    Faulty,
    bearer,
    scope_of,
    whole_body,
)

LIMITS = Limits(max_batch=8, max_sessions=100, idle_timeout_s=60.0)
MAX_BODY_BYTES = 4096
MODEL = "/v2/models/sine-cell"
INFER = MODEL + "/infer"

Use = Callable[[httpx.AsyncClient, Engine], Awaitable[None]]


def with_v2(catalog: Catalog, use: Use, access: Access | None = None, **limits: Any) -> None:
    async def scenario() -> None:
        async with running(catalog, **limits) as engine:
            transport = httpx.ASGITransport(V2App(engine, LIMITS, MAX_BODY_BYTES, access))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                await use(client, engine)

    run(scenario())


def body(*rows: list[float], **parameters: object) -> dict[str, Any]:
    """An inference of these rows, each some steps of one feature."""
    x = np.array(rows or ([0.5],))[..., np.newaxis]
    return {
        "inputs": [{"name": "x", "shape": x.shape, "datatype": "FP64", "data": x.ravel().tolist()}],
        "parameters": parameters,
    }


def why(reply: httpx.Response) -> tuple[int, str]:
    """The status and the error of a refusal, which has nothing else."""
    found = reply.json()
    assert list(found) == ["error"]
    return reply.status_code, found["error"]


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"sequence_id": -1}, "`sequence_id` is -1, expected 0 to 2"),
        ({"sequence_id": 2**64}, "expected 0 to 2"),
        ({"sequence_id": True}, "expected an integer or a string"),
        ({"sequence_id": 1.5}, "expected an integer or a string"),
        ({"sequence_id": "a" * 257}, "257 characters, expected at most 256"),
        ({"sequence_start": True}, "`sequence_start` is of a sequence"),
        ({"sequence_id": 0, "sequence_end": True}, "`sequence_end` is of a sequence"),
        ({"sequence_id": "", "step": 3}, "`step` is of a sequence"),
        ({"sequence_id": 1, "sequence_start": "yes"}, "expected true or false"),
        ({"sequence_id": 1, "sequence_end": 1}, "expected true or false"),
        ({"sequence_id": 1, "step": -1}, "`step` is -1, expected an integer"),
        ({"sequence_id": 1, "step": 2**63}, "expected an integer from 0 to"),
        ({"sequence_id": 1, "step": "3"}, "`step` is '3', expected an integer"),
        ({"sequence_id": 1, "idempotency_key": 3}, "`idempotency_key` is 3, expected a string"),
        ({"sequence_id": 1, "idempotency_key": ""}, "`idempotency_key` has 0 characters"),
        ({"timeout": -1}, "`timeout` is -1"),
        ({"priority": "high"}, "`priority` is 'high'"),
        ({"stpe": 3}, "there is no parameter `stpe`"),
    ],
)
def test_a_parameter_that_is_none_is_refused(
    sine: Model, parameters: dict[str, Any], told: str
) -> None:
    """Nothing begins, nothing moves."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        status, error = why(await client.post(INFER, json=body(**parameters)))
        assert status == 400
        assert told in error
        assert await engine._store.count() == 0

    with_v2(Catalog([sine]), use)


def test_parameters_of_others_change_nothing(sine: Model) -> None:
    """`priority`, what begins with `triton_`, and the flags of a sequence that is none."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        plain = await client.post(INFER, json=body())
        more = {"priority": 1, "triton_enable_empty_final_response": True, "sequence_end": False}
        assert (await client.post(INFER, json=body(**more))).content == plain.content

    with_v2(Catalog([sine]), use)


@pytest.mark.parametrize(
    ("tensor", "status", "told"),
    [
        ({"name": "z"}, 400, "the inputs are `z`, expected one, `x`"),
        ({"shape": [1]}, 400, "expected (batch, time, ...)"),
        ({"shape": [1, 1]}, 400, "a row of `x` has shape (1,), expected (time, 1)"),
        ({"shape": [1, 1, 1, 1]}, 400, "a row of `x` has shape (1, 1, 1)"),
        ({"datatype": "BOOL", "data": [True]}, 400, "datatype BOOL, expected a float"),
        ({"datatype": "BYTES", "data": ["a"]}, 400, "`x` is BYTES, and this model takes numbers"),
        ({"data": [1e39]}, 400, "too large"),
        ({"shape": [9, 1, 1], "data": [0] * 9}, 413, "9 rows, the server takes 8"),
    ],
)
def test_an_input_that_is_none_is_refused(
    sine: Model, tensor: dict[str, Any], status: int, told: str
) -> None:
    """Before anything runs."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        asked = body()
        asked["inputs"][0].update(tensor)
        found, error = why(await client.post(INFER, json=asked))
        assert found == status
        assert told in error

    with_v2(Catalog([sine]), use)


def test_rows_of_one_sequence_are_one(sine: Model) -> None:
    """Others are other sequences."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        asked = body([1.0], [2.0], sequence_id=1, sequence_start=True)
        status, error = why(await client.post(INFER, json=asked))
        assert (status, "expected 1 of sequence 1" in error) == (400, True)
        assert await engine._store.count() == 0

    with_v2(Catalog([sine]), use)


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", INFER, 405, "does not take GET, expected POST"),
        ("POST", "/v2", 405, "does not take POST, expected GET"),
        ("GET", "/v2/models", 404, "no route /v2/models"),
        ("POST", f"{MODEL}/generate", 404, "no route"),
        ("POST", f"{MODEL}/versions/1/infer", 404, "model `sine-cell:1` is not served"),
        ("POST", "/v2/models//infer", 404, "is not served"),
        ("GET", "/v2/models/%2e%2e%2fsine-cell", 404, "is not served"),
        ("POST", f"{MODEL}/infer/more", 404, "no route"),
        ("POST", "/v2/repository/index", 400, "not JSON"),
    ],
)
def test_other_routes_and_methods_are_refused(
    sine: Model, method: str, path: str, status: int, told: str
) -> None:
    """In v2's shape; a method with those that there are."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        content = b"no" if path.endswith("index") else json.dumps(body()).encode()
        reply = await client.request(method, path, content=content)
        found, error = why(reply)
        assert (found, told in error) == (status, True)
        assert (status == 405) == ("allow" in reply.headers)

    with_v2(Catalog([sine]), use)


def test_a_body_over_the_limit_is_413(sine: Model) -> None:
    """Not more of it is read."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        reply = await client.post(INFER, content=b" " * (MAX_BODY_BYTES + 1))
        assert why(reply)[0] == 413

    with_v2(Catalog([sine]), use)


def test_a_full_queue_is_429_and_rows_are_taken_all_or_none(sine: Model) -> None:
    """The rows that had room wait no longer."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        reply = await client.post(INFER, json=body(*[[0.1]] * 5))
        assert why(reply)[0] == 429
        assert int(reply.headers["retry-after"]) > 0
        assert engine._batcher.is_empty
        assert (await client.post(INFER, json=body(*[[0.1]] * 4))).status_code == 200

    with_v2(Catalog([sine]), use, max_queue=4)


def test_a_full_store_takes_rows_that_leave_nothing(sine: Model) -> None:
    """A sequence that stays is refused."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        first, second = (body(sequence_id=n, sequence_start=True) for n in (1, 2))
        assert (await client.post(INFER, json=first)).status_code == 200
        assert why(await client.post(INFER, json=second))[0] == 429
        assert (await client.post(INFER, json=body())).status_code == 200
        assert await engine._store.count() == 1

    with_v2(Catalog([sine]), use, max_sessions=1)


def test_a_bug_of_ours_is_500_without_its_traceback(
    sine: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has it; the client does not."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        for reply in (
            await client.get("/v2/health/ready"),
            await client.post(INFER, json=body(sequence_id=1)),
        ):
            assert why(reply) == (500, "the server failed; its log says why")

    with_v2(Catalog([sine]), use, store=Faulty(1, 60.0))
    assert "ZeroDivisionError: secret detail" in caplog.text


# Running ----------------------------------------------------------------------------------------


def test_rows_run_in_one_batch(sine: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of the model, for as many rows as a batch takes."""
    sizes: list[int] = []
    run_rows = Model.run

    def note(self: Model, chunks: Any, states: Any) -> Any:
        sizes.append(len(chunks))
        return run_rows(self, chunks, states)

    monkeypatch.setattr(Model, "run", note)

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        rows = np.random.default_rng(1).normal(size=(8, 5)).tolist()
        reply = (await client.post(INFER, json=body(*rows))).json()
        assert reply["outputs"][0]["shape"] == [8, 5, 1]

    with_v2(Catalog([sine]), use)
    assert sizes == [8]


def idle_engine(sine: Model) -> Engine:
    """Not started: whatever is submitted waits."""
    return Engine(Catalog([sine]), MemoryStore(10, 60.0), max_batch=8, max_queue=8, max_steps=10)


def test_a_timeout_ends_the_wait(sine: Model) -> None:
    """504, and what had not started is not run."""

    async def scenario() -> None:
        engine = idle_engine(sine)
        transport = httpx.ASGITransport(V2App(engine, LIMITS, MAX_BODY_BYTES))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asked = body([1.0], [2.0], timeout=2000)
            status, error = why(await client.post(INFER, json=asked))
            assert (status, "its timeout of 0.002 s" in error) == (504, True)
            one = body(sequence_id=1, sequence_start=True, timeout=2000)
            assert why(await client.post(INFER, json=one))[0] == 504
            assert engine._batcher.is_empty
            engine.start()
            assert (await client.post(INFER, json={**one, "parameters": {}})).status_code == 200
        await engine.close()

    run(scenario())


def test_a_request_whose_client_hung_up_while_it_waited_is_not_run(sine: Model) -> None:
    """Nobody is answered, and no row of it is left."""

    async def scenario() -> None:
        engine = idle_engine(sine)
        app = V2App(engine, LIMITS, MAX_BODY_BYTES)
        client = Client(whole_body(json.dumps(body([1.0], [2.0])).encode()))
        task = asyncio.create_task(app(scope_of(INFER), client.receive, client.send))
        while engine._batcher.is_empty:
            await asyncio.sleep(0)
        client.hang_up()
        await asyncio.wait_for(task, timeout=10)
        assert client.sent == []
        assert engine._batcher.is_empty
        await engine.close()

    run(scenario())


# Who may ask ------------------------------------------------------------------------------------


def test_a_key_is_needed_for_all_but_health(sine: Model) -> None:
    """As under every protocol; its tenant's sequences are nobody else's."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert (await client.get(path)).status_code == 200
        for method, path in (
            ("GET", "/v2"),
            ("GET", MODEL),
            ("GET", MODEL + "/ready"),
            ("GET", MODEL + "/config"),
            ("POST", "/v2/repository/index"),
            ("POST", INFER),
            ("GET", "/v2/nothing"),
        ):
            reply = await client.request(method, path, json=body())
            assert why(reply)[0] == 401
            assert "www-authenticate" in reply.headers
        start = body(sequence_id=1, sequence_start=True)
        assert (await client.post(INFER, json=start, headers=bearer(ACME))).status_code == 200
        asked = body(sequence_id=1)
        assert why(await client.post(INFER, json=asked, headers=bearer(ZETA)))[0] == 410
        assert (await client.post(INFER, json=asked, headers={"x-api-key": ACME})).is_success
        assert (await engine.look_up(SessionKey("acme", "1"))).step == 2

    with_v2(Catalog([sine]), use, Access(KeyRing(None, KEYS)))


def test_without_keys_only_this_machine_is_answered(sine: Model) -> None:
    """Nor a page from elsewhere."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        reply = await client.post(INFER, json=body(), headers={"origin": "https://example.org"})
        assert why(reply)[0] == 403

    with_v2(Catalog([sine]), use)


# What a server says of itself -------------------------------------------------------------------


def test_a_draining_server_is_not_ready(sine: Model) -> None:
    """But live; it takes nothing new."""

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        engine.drain()
        for path in ("/v2/health/ready", MODEL + "/ready"):
            assert why(await client.get(path))[0] == 503
        assert (await client.get("/v2/health/live")).status_code == 200
        assert (await client.head("/v2/health/live")).status_code == 200
        assert why(await client.post(INFER, json=body()))[0] == 503

    with_v2(Catalog([sine]), use)


def test_a_broken_model_is_not_ready_and_the_index_says_why(sine: Model) -> None:
    """Its reason is told to who has a key; the health route names nothing."""
    broken: dict[str, ArtifactError] = {"bad:0123456789abcdef": ArtifactError("it was changed")}

    async def use(client: httpx.AsyncClient, engine: Engine) -> None:
        status, error = why(await client.get("/v2/health/ready"))
        assert (status, "it was changed" in error) == (503, False)
        assert why(await client.get("/v2/models/bad/ready")) == (503, "it was changed")
        assert (await client.get(MODEL + "/ready")).status_code == 200
        index = (await client.post("/v2/repository/index")).json()
        assert index == [
            {"name": "sine-cell", "version": sine.version, "state": "READY", "reason": ""},
            {
                "name": "bad",
                "version": "0123456789abcdef",
                "state": "UNAVAILABLE",
                "reason": "it was changed",
            },
        ]
        ready = (await client.post("/v2/repository/index", json={"ready": True})).json()
        assert ready == index[:1]

    with_v2(Catalog([sine], broken), use)


def test_a_version_that_is_not_loaded_is_unavailable(sine: Model) -> None:
    """Until a request loads it."""
    catalog = Catalog([sine])
    catalog.offer([f"sine-cell:{'0' * 16}", sine.reference])
    states = {one["version"]: one["state"] for one in repository_index(catalog)}
    assert states == {"0" * 16: "UNAVAILABLE", sine.version: "READY"}


def test_the_version_is_the_projects() -> None:
    """Which the serving image does not have."""
    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text()
    assert len(set(EXTENSIONS)) == len(EXTENSIONS)
