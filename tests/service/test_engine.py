"""The engine over real models and the memory store, against a plain loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.batcher import SLICE_STEPS
from service.catalog import Catalog
from service.engine import Engine
from service.errors import (
    CapacityError,
    CarouselError,
    DrainingError,
    InternalError,
    ModelConflictError,
    RequestError,
    ResultNotFiniteError,
    SessionGoneError,
    SessionNotFoundError,
    ShapeError,
    StepConflictError,
    TooLongError,
    UnknownModelError,
)
from service.job import Answer, Request
from service.model import Model
from service.runtime import Runtime
from service.session import Record, SessionKey
from service.store import Commit, Outcome
from service.store.memory import MemoryStore
from service.wire import Array, RowShape
from tests.service.build_artifact import Spec, build_artifact

T = TypeVar("T")


@dataclass(frozen=True)
class Given:
    """Rows that are an array already."""

    array: Array

    def decode(self, shape: RowShape) -> Array:
        return self.array


@dataclass
class Clock:
    """Time that passes when the test says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


ROOM: dict[str, Any] = {"max_sessions": 1000, "idle_timeout_s": 60.0}


@asynccontextmanager
async def running(catalog: Catalog, **limits: Any) -> AsyncIterator[Engine]:
    of_store = ("max_sessions", "idle_timeout_s", "clock")
    kept = {name: limits.pop(name) for name in of_store if name in limits}
    store = limits.pop("store", None) or MemoryStore(**{**ROOM, **kept})
    sizes = {"max_batch": 64, "max_queue": 1000, "max_steps": 4000}
    engine = Engine(catalog, store, **{**sizes, **limits})
    engine.start()
    try:
        yield engine
    finally:
        await asyncio.wait_for(engine.close(), timeout=30)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def request(
    session_id: str, x: Array, step: int | None = None, model: str | None = "sine-cell"
) -> Request:
    return Request(SessionKey("", session_id), Given(x), step, model)


def rows(steps: int, seed: int = 0, width: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=(steps, width))


def whole(model: Model, x: Array) -> Array:
    """y of one sequence, run whole and alone from the zero state."""
    (y,), _, _ = model.run([model.encode(x)], [model.initial_state])
    return model.decode(y)


def test_a_sequence_cut_into_chunks_gives_what_the_whole_gives(series: Model) -> None:
    """The state rides on from request to request, bit for bit, in raw units."""
    x = 20 + 3 * rows(300, width=8)

    async def scenario() -> None:
        async with running(Catalog([series])) as engine:
            answers = []
            for start, end in [(0, 1), (1, 2), (2, 9), (9, 200), (200, 300)]:
                answer = await engine.predict(request("s", x[start:end], start, None))
                assert (answer.step, answer.created) == (end, start == 0)
                answers.append(answer.y)
            assert np.array_equal(np.concatenate(answers), whole(series, x))

    run(scenario())


def test_a_chunk_of_many_slices_gives_what_the_whole_gives(sine: Model) -> None:
    """Slices are the batcher's affair: nothing of them shows."""
    x = rows(10 * SLICE_STEPS + 7)

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            long = asyncio.create_task(engine.predict(request("long", x)))
            short = [await engine.predict(request("short", x[n : n + 1])) for n in range(20)]
            answer = await long
            assert answer.step == len(x)
            assert np.array_equal(answer.y, whole(sine, x))
            assert np.array_equal(np.concatenate([a.y for a in short]), whole(sine, x[:20]))

    run(scenario())


def test_a_model_that_is_not_isolated_runs_one_session_in_a_call(
    sine: Model, series: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have their turn between its calls, and the answers are those of a plain loop."""
    apart = replace(sine, runtime=Runtime(sine.artifact, "onnx-fp32"))
    apart.runtime.isolated = False
    calls: list[tuple[str, int]] = []
    real = Model.run

    def count(self: Model, chunks: Any, states: Any) -> Any:
        calls.append((self.name, len(chunks)))
        return real(self, chunks, states)

    monkeypatch.setattr(Model, "run", count)

    async def scenario() -> None:
        async with running(Catalog([apart, series])) as engine:
            xs = [rows(3, seed=n) for n in range(6)]
            given = [request(str(n), x) for n, x in enumerate(xs)]
            given += [request(f"s{n}", rows(3, width=8), model="series-lstm") for n in range(6)]
            answers = await asyncio.gather(*map(engine.predict, given))
            assert calls[:2] == [("sine-cell", 1), ("series-lstm", 6)]
            assert calls[2:] == [("sine-cell", 1)] * 5
            for answer, x in zip(answers, xs, strict=False):
                assert np.array_equal(answer.y, whole(sine, x))

    run(scenario())


def test_the_same_request_again_gives_the_same_answer_and_moves_nothing(sine: Model) -> None:
    """A retry after a lost reply is safe, however often, and for the first request too."""
    x = rows(5)

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            first = await engine.predict(request("s", x[:3], 0))
            for _ in range(3):
                again = await engine.predict(request("s", x[:3], 0))
                assert (again.step, again.created) == (first.step, first.created) == (3, True)
                assert np.array_equal(again.y, first.y)
            assert (await engine.look_up(SessionKey("", "s"))).step == 3
            last = await engine.predict(request("s", x[3:], 3))
            assert np.array_equal(last.y, whole(sine, x)[3:])

    run(scenario())


@pytest.mark.parametrize(
    ("step", "model", "error"),
    [
        (2, "sine-cell", StepConflictError),
        (4, "sine-cell", StepConflictError),
        (0, "sine-cell", StepConflictError),
        (None, "series-lstm", ShapeError),
        (3, "nobody", UnknownModelError),
    ],
)
def test_a_refused_request_changes_nothing(
    catalog: Catalog, step: int | None, model: str, error: type[CarouselError]
) -> None:
    """The record after the refusal is the record before."""

    async def scenario() -> None:
        async with running(catalog) as engine:
            await engine.predict(request("s", rows(3)))
            before = await engine.look_up(SessionKey("", "s"))
            with pytest.raises(error):
                await engine.predict(request("s", rows(1), step, model))
            assert await engine.look_up(SessionKey("", "s")) == before

    run(scenario())


def test_an_unknown_session_begins_at_step_0_only(sine: Model) -> None:
    """With a step it is gone, and the server says so instead of starting over."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            with pytest.raises(SessionGoneError, match="gone or never began, request says step 7"):
                await engine.predict(request("s", rows(1), 7))
            with pytest.raises(SessionNotFoundError):
                await engine.look_up(SessionKey("", "s"))
            assert (await engine.predict(request("s", rows(1), 0))).created

    run(scenario())


def test_an_idle_session_expires_and_its_client_is_told(sine: Model) -> None:
    """410 for the next step; a request without one begins anew and says `created`."""
    clock = Clock()

    async def scenario() -> None:
        async with running(Catalog([sine]), clock=clock, idle_timeout_s=60.0) as engine:
            await engine.predict(request("s", rows(2)))
            clock.now = 59.0
            await engine.predict(request("s", rows(1), 2))
            clock.now = 59.0 + 60.0
            with pytest.raises(SessionGoneError):
                await engine.predict(request("s", rows(1), 3))
            answer = await engine.predict(request("s", rows(1)))
            assert (answer.created, answer.step) == (True, 1)

    run(scenario())


def test_a_full_server_refuses_new_sessions_and_serves_the_live_ones(sine: Model) -> None:
    """429 with the seconds until the first live one expires; never an eviction."""
    clock = Clock()

    async def scenario() -> None:
        async with running(
            Catalog([sine]), clock=clock, max_sessions=2, idle_timeout_s=30.0
        ) as engine:
            await engine.predict(request("a", rows(1)))
            clock.now = 10.0
            await engine.predict(request("b", rows(1)))
            with pytest.raises(CapacityError, match="holds 2 sessions") as caught:
                await engine.predict(request("c", rows(1)))
            assert caught.value.data == {"limit": "sessions", "retry_after_s": 20}
            assert (await engine.predict(request("a", rows(1), 1))).step == 2
            await engine.drop(SessionKey("", "b"))
            assert (await engine.predict(request("c", rows(1)))).created

    run(scenario())


def test_a_dropped_session_is_gone_and_its_name_is_free(sine: Model) -> None:
    """Drop waits for what the session has waiting, so that it is not begun again."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            jobs = [await engine.submit(request("s", rows(200))) for _ in range(3)]
            dropped = await engine.drop(SessionKey("", "s"))
            assert dropped.step == 600
            assert [job.future.result().step for job in jobs] == [200, 400, 600]
            with pytest.raises(SessionNotFoundError, match="there is no session `s`"):
                await engine.drop(SessionKey("", "s"))
            answer = await engine.predict(request("s", rows(1)))
            assert np.array_equal(answer.y, whole(sine, rows(1)))

    run(scenario())


def test_too_many_steps_in_one_request_are_refused(sine: Model) -> None:
    """With the number that the server takes."""

    async def scenario() -> None:
        async with running(Catalog([sine]), max_steps=10) as engine:
            assert (await engine.predict(request("s", rows(10)))).step == 10
            with pytest.raises(TooLongError, match="`x` has 11 steps, the server takes 10"):
                await engine.predict(request("s", rows(11)))

    run(scenario())


def test_a_session_keeps_its_model_and_a_request_need_not_name_it(catalog: Catalog) -> None:
    """Even while the request that begins the session is still waiting."""

    async def scenario() -> None:
        async with running(catalog) as engine:
            with pytest.raises(RequestError, match="expected `model` to name one of"):
                await engine.predict(request("s", rows(1), model=None))
            first = await engine.submit(request("s", rows(1, width=8), model="series-lstm"))
            second = await engine.submit(request("s", rows(2, width=8), model=None))
            assert (await second.future).model == "series-lstm"
            assert (await first.future).created
            assert (await engine.predict(request("s", rows(1, width=8), 3, None))).step == 4
            with pytest.raises(ModelConflictError, match=r"lives on series-lstm:.* says sine-cell"):
                await engine.predict(request("s", rows(1), model="sine-cell"))

    run(scenario())


def test_a_guess_of_the_model_is_corrected_when_the_session_is_known(
    sine: Model, series: Model
) -> None:
    """The one before it was refused, so the request is for the default model after all."""
    catalog = Catalog([sine, series], default="sine-cell")

    async def scenario() -> None:
        async with running(catalog) as engine:
            refused = await engine.submit(request("s", rows(1, width=8), 5, "series-lstm"))
            guessed = await engine.submit(
                Request(SessionKey("", "s"), Stretchy(rows(1, width=8)), None, None)
            )
            with pytest.raises(SessionGoneError):
                await refused.future
            answer = await guessed.future
            assert (answer.model, answer.created) == ("sine-cell", True)

    run(scenario())


@dataclass(frozen=True)
class Stretchy:
    """Rows that fit any model: cut to the width it wants."""

    array: Array

    def decode(self, shape: RowShape) -> Array:
        return self.array[:, : shape.tail[0]]


def test_two_versions_of_a_model_live_side_by_side(
    sine: Model, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """New sessions go to the newest; a live one stays on its own."""
    root = tmp_path_factory.mktemp("newer")
    newer = Model.load(build_artifact(root, Spec("sine-cell", seed=99)))

    async def scenario() -> None:
        store = MemoryStore(**ROOM)
        async with running(Catalog([sine]), store=Kept(store)) as engine:
            await engine.predict(request("old", rows(2)))
        async with running(Catalog([sine, newer]), store=store) as engine:
            old = await engine.predict(request("old", rows(1), 2, None))
            named = await engine.predict(request("old", rows(1), 3, "sine-cell"))
            new = await engine.predict(request("new", rows(1), 0, "sine-cell"))
            assert (old.version, named.version) == (sine.version, sine.version)
            assert new.version == newer.version
        async with running(Catalog([newer]), store=store) as engine:
            assert (await engine.predict(request("new", rows(1), 0))).version == newer.version

    run(scenario())


class Kept:
    """A store that outlives the engine that closes it."""

    def __init__(self, store: MemoryStore) -> None:
        self.get, self.commit, self.sweep = store.get, store.commit, store.sweep
        self.count, self.room_in_s = store.count, store.room_in_s
        self.table = store.table

    async def close(self) -> None:
        """Nothing: the next engine uses it."""


def test_a_session_on_a_version_that_is_not_served_is_refused(
    sine: Model, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Never restarted on another one."""
    root = tmp_path_factory.mktemp("newest")
    newer = Model.load(build_artifact(root, Spec("sine-cell", seed=98)))

    async def scenario() -> None:
        store = MemoryStore(**ROOM)
        async with running(Catalog([sine]), store=Kept(store)) as engine:
            await engine.predict(request("old", rows(2)))
        async with running(Catalog([newer]), store=store) as engine:
            with pytest.raises(UnknownModelError, match="session `old` lives on sine-cell:"):
                await engine.predict(request("old", rows(1), 2))

    run(scenario())


class Contended(MemoryStore):
    """A store in which another worker is faster, `rivals` times: it advances the session first."""

    def __init__(self, rivals: int, rival: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        super().__init__(**ROOM)
        self.rivals = rivals
        self._rival = rival

    async def commit(self, commits: Any) -> list[Outcome]:
        if self.rivals:
            self.rivals -= 1
            await self._rival()
        return await super().commit(commits)


def test_a_lost_commit_runs_again_from_the_record_that_won(sine: Model) -> None:
    """The client sees one advance, after the rival's."""
    x = rows(3)

    async def scenario() -> None:
        store = Contended(1, lambda: rival())

        async def rival() -> None:
            async with running(Catalog([sine]), store=Kept(store)) as other:
                await other.predict(request("s", x[:2]))

        async with running(Catalog([sine]), store=store) as engine:
            answer = await engine.predict(request("s", x[2:]))
            assert (answer.step, answer.created) == (3, False)
            assert np.array_equal(answer.y, whole(sine, x)[2:])

    run(scenario())


def test_a_lost_commit_of_a_numbered_request_is_judged_again(sine: Model) -> None:
    """The rival ran the very same request: this one is its retry, and not a second advance."""
    x = rows(2)

    async def scenario() -> None:
        store = Contended(1, lambda: rival())

        async def rival() -> None:
            async with running(Catalog([sine]), store=Kept(store)) as other:
                await other.predict(request("s", x, 0))

        async with running(Catalog([sine]), store=store) as engine:
            answer = await engine.predict(request("s", x, 0))
            assert (answer.step, answer.created) == (2, True)
            assert (await engine.look_up(SessionKey("", "s"))).step == 2

    run(scenario())


def test_a_lost_commit_of_a_request_that_nobody_waits_for_begins_nothing(sine: Model) -> None:
    """Its client went away, and the session was dropped: it stays dropped."""

    async def scenario() -> None:
        async def drop() -> None:
            engine.abandon(job)
            (record,) = await store.get([SessionKey("", "s")])
            await MemoryStore.commit(store, [Commit(SessionKey("", "s"), record, None)])

        store = Contended(0, drop)
        async with running(Catalog([sine]), store=store) as engine:
            await engine.predict(request("s", rows(1)))
            store.rivals = 1
            job = await engine.submit(request("s", rows(1)))
            await engine.predict(request("other", rows(1)))
            await engine.predict(request("other", rows(1)))
            assert job.future.cancelled()
            with pytest.raises(SessionNotFoundError):
                await engine.look_up(SessionKey("", "s"))

    run(scenario())


class Broken(MemoryStore):
    """A store that fails while `broken`."""

    broken = False

    async def commit(self, commits: Any) -> list[Outcome]:
        if self.broken:
            raise OSError("disk full")
        return await super().commit(commits)


def test_an_exception_fails_the_requests_of_that_batch_and_not_the_engine(
    sine: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets no traceback; the log does; the session stays as it was."""

    async def scenario() -> None:
        store = Broken(**ROOM)
        async with running(Catalog([sine]), store=store) as engine:
            await engine.predict(request("s", rows(1)))
            store.broken = True
            failed = await asyncio.gather(
                engine.predict(request("s", rows(1), 1)),
                engine.predict(request("t", rows(1))),
                return_exceptions=True,
            )
            assert [type(error) for error in failed] == [InternalError, InternalError]
            assert "disk full" not in str(failed[0])
            store.broken = False
            assert (await engine.predict(request("s", rows(1), 1))).step == 2

    run(scenario())
    assert "OSError: disk full" in caplog.text


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose head overflows float32 where its hidden state is large."""
    root = tmp_path_factory.mktemp("fragile")
    return Model.load(build_artifact(root, Spec("fragile", seed=3, overflow_above=6.0)))


def test_a_result_that_is_not_finite_fails_its_row_alone(fragile: Model) -> None:
    """Its session stays as it was, and those beside it in the batch do not notice."""
    calm, wild = rows(4), np.full((1, 1), 1e3)

    async def scenario() -> None:
        async with running(Catalog([fragile])) as engine:
            await engine.predict(request("wild", calm[:2], model=None))
            before = await engine.look_up(SessionKey("", "wild"))
            jobs = [
                await engine.submit(request(name, x, model=None))
                for name, x in [("a", calm[:1]), ("wild", wild), ("b", calm[1:2])]
            ]
            with pytest.raises(ResultNotFiniteError, match=r"not finite at step 2; .* at step 2"):
                await jobs[1].future
            assert np.array_equal((await jobs[0].future).y, whole(fragile, calm[:1]))
            assert np.array_equal((await jobs[2].future).y, whole(fragile, calm[1:2]))
            assert await engine.look_up(SessionKey("", "wild")) == before
            after = await engine.predict(request("wild", calm[2:], 2, None))
            assert np.array_equal(after.y, whole(fragile, calm)[2:])

    run(scenario())


def test_an_abandoned_request_is_not_run_unless_it_runs_already(sine: Model) -> None:
    """Its client went away while it waited."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            jobs = [await engine.submit(request("s", rows(1))) for _ in range(3)]
            engine.abandon(jobs[1])
            assert jobs[1].future.cancelled()
            assert (await jobs[2].future).step == 2

    run(scenario())


def test_a_drained_engine_answers_what_it_accepted_and_takes_no_more(sine: Model) -> None:
    """Even a chunk of many slices."""

    async def scenario() -> None:
        async with running(Catalog([sine])) as engine:
            drained: list[str] = []
            engine.on_drain(lambda: drained.append("told"))
            job = await engine.submit(request("s", rows(2000)))
            engine.drain()
            engine.drain()
            assert drained == ["told"]
            with pytest.raises(DrainingError, match="shutting down"):
                await engine.submit(request("t", rows(1)))
            await engine.close()
            assert job.future.result().step == 2000

    run(scenario())


def test_a_full_queue_refuses_and_room_is_announced(sine: Model) -> None:
    """A stream waits for room; a single request is refused."""

    async def scenario() -> None:
        async with running(Catalog([sine]), max_queue=2) as engine:
            for name in "ab":
                await engine.submit(request(name, rows(1)))
            with pytest.raises(CapacityError, match="2 requests are waiting"):
                await engine.submit(request("c", rows(1)))
            await asyncio.wait_for(engine.wait_for_room(""), timeout=10)
            assert (await engine.predict(request("c", rows(1)))).created

    run(scenario())


def test_a_full_queue_says_when_it_will_be_done_at_the_pace_measured(sine: Model) -> None:
    """Of a model that takes 50 ms a request, which the engine must find out by itself."""

    class Slow(Model):
        def run(self, chunks: Any, states: Any) -> Any:
            time.sleep(0.05 * len(chunks))
            return super().run(chunks, states)

    slow = Slow(sine.artifact, sine.runtime, type(sine.cost)(base_s=1.0, per_row_s=0.0))

    async def scenario() -> None:
        async with running(Catalog([slow]), max_batch=2, max_queue=100) as engine:
            first = [await engine.submit(request(f"w-{n}", rows(1))) for n in range(100)]
            with pytest.raises(CapacityError) as guessed:
                await engine.submit(request("s", rows(1)))
            assert guessed.value.data == {"limit": "queue", "retry_after_s": 1}
            await asyncio.wait([job.future for job in first[:60]])
            for n in range(60):
                await engine.submit(request(f"x-{n}", rows(1)))
            with pytest.raises(CapacityError, match=r"retry in [4-7] s"):
                await engine.submit(request("s", rows(1)))

    run(scenario())


def test_a_slow_model_runs_in_a_thread_and_gives_the_same(sine: Model) -> None:
    """The loop answers others meanwhile."""
    slow = Model(sine.artifact, sine.runtime, type(sine.cost)(base_s=1.0, per_row_s=0.0))

    async def scenario() -> None:
        async with running(Catalog([slow])) as engine:
            answer = await engine.predict(request("s", rows(50)))
            assert np.array_equal(answer.y, whole(sine, rows(50)))

    run(scenario())


# Histories --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Act:
    """One thing that a client does."""

    session_id: str
    kind: str
    steps: int
    seed: int


ACTS = st.builds(
    Act,
    session_id=st.sampled_from("abcd"),
    kind=st.sampled_from(["plain", "plain", "numbered", "numbered", "retry", "gap", "drop"]),
    steps=st.sampled_from([1, 1, 1, 2, 5, SLICE_STEPS + 3]),
    seed=st.integers(0, 99),
)


@dataclass
class Oracle:
    """A plain loop over what was acknowledged."""

    model: Model
    rows: dict[str, list[Array]] = field(default_factory=dict)
    last: dict[str, tuple[int, Array]] = field(default_factory=dict)

    def step(self, session_id: str) -> int:
        return sum(len(x) for x in self.rows.get(session_id, []))

    def advance(self, session_id: str, x: Array) -> Array:
        self.last[session_id] = (self.step(session_id), x)
        self.rows.setdefault(session_id, []).append(x)
        return whole(self.model, np.concatenate(self.rows[session_id]))[-len(x) :]


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(groups=st.lists(st.lists(ACTS, min_size=1, max_size=6), min_size=1, max_size=8))
def test_any_history_gives_what_a_plain_loop_gives(sine: Model, groups: list[list[Act]]) -> None:
    """The acts of a group are in flight together; each reply and each refusal is the oracle's."""

    async def scenario() -> None:
        oracle = Oracle(sine)
        async with running(Catalog([sine]), max_batch=3) as engine:
            for group in groups:
                checks = [await _start(engine, oracle, act) for act in group]
                for check in checks:
                    await check
            for session_id in "abcd":
                await _compare_record(engine, oracle, session_id)

    run(scenario())


async def _start(engine: Engine, oracle: Oracle, act: Act) -> Coroutine[Any, Any, None]:
    """Submit one act; what is returned awaits the answer and compares it."""
    name, x, step = act.session_id, rows(act.steps, act.seed), oracle.step(act.session_id)
    if act.kind == "drop":
        return await _drop(engine, oracle, name)
    if act.kind == "gap":
        job = await engine.submit(request(name, x, step + 1))
        error = StepConflictError if name in oracle.rows else SessionGoneError
        return _expect_error(job.future, error)
    if act.kind == "retry" and name in oracle.last:
        at, again = oracle.last[name]
        job = await engine.submit(request(name, again, at))
        y = whole(oracle.model, np.concatenate(oracle.rows[name]))[-len(again) :]
        return _expect_answer(job.future, y, step, created=at == 0)
    job = await engine.submit(request(name, x, step if act.kind == "numbered" else None))
    return _expect_answer(job.future, oracle.advance(name, x), step + len(x), created=step == 0)


async def _drop(engine: Engine, oracle: Oracle, name: str) -> Coroutine[Any, Any, None]:
    if name in oracle.rows:
        assert (await engine.drop(SessionKey("", name))).step == oracle.step(name)
        del oracle.rows[name], oracle.last[name]
    else:
        with pytest.raises(SessionNotFoundError):
            await engine.drop(SessionKey("", name))
    return asyncio.sleep(0)


async def _expect_answer(
    future: "asyncio.Future[Answer]", y: Array, step: int, *, created: bool
) -> None:
    answer = await future
    assert (answer.step, answer.created) == (step, created)
    assert np.array_equal(answer.y, y)


async def _expect_error(future: "asyncio.Future[Answer]", error: type[CarouselError]) -> None:
    with pytest.raises(error):
        await future


async def _compare_record(engine: Engine, oracle: Oracle, session_id: str) -> None:
    if session_id not in oracle.rows:
        with pytest.raises(SessionNotFoundError):
            await engine.look_up(SessionKey("", session_id))
        return
    record: Record = await engine.look_up(SessionKey("", session_id))
    model = oracle.model
    x = model.encode(np.concatenate(oracle.rows[session_id]))
    _, (state,), _ = model.run([x], [model.initial_state])
    assert (record.step, record.state) == (len(x), state)


def test_a_commit_is_one_for_a_whole_batch(sine: Model) -> None:
    """A batch of sessions costs one read and one commit."""
    calls: list[tuple[str, int]] = []

    class Counting(MemoryStore):
        async def get(self, keys: Any) -> list[Record | None]:
            calls.append(("get", len(keys)))
            return await super().get(keys)

        async def commit(self, commits: Any) -> list[Outcome]:
            assert all(isinstance(commit, Commit) for commit in commits)
            calls.append(("commit", len(commits)))
            return await super().commit(commits)

    async def scenario() -> None:
        async with running(Catalog([sine]), store=Counting(**ROOM)) as engine:
            await asyncio.gather(
                *(engine.predict(request(str(n), rows(1), model=None)) for n in range(16))
            )

    run(scenario())
    assert calls == [("get", 16), ("commit", 16)]
