"""Blocks: to the bit what their rows would be one by one, and in order with everything else."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.blocks import Block, Done
from service.catalog import Catalog
from service.engine import Engine
from service.errors import (
    CarouselError,
    DrainingError,
    InternalError,
    NotFiniteError,
    ResultNotFiniteError,
    StepConflictError,
    StoreUnavailableError,
)
from service.job import Answer, Job, Request
from service.metrics import Metrics
from service.model import Model
from service.origin import Origin
from service.session import Record, SessionKey
from service.store.disk import index as index_module
from service.store.disk import table as table_module
from service.store.disk.store import DiskStore
from service.wire import Array
from tests.service.build_artifact import Spec, build_artifact, scaling
from tests.service.disk_checks import assert_sound
from tests.service.test_engine import Given, run, running, whole

ORIGIN = Origin("blocks", "ws")
ANY = -1


@dataclass
class Told:
    """Everything that became of a block."""

    size: int
    dones: list[Done] = field(default_factory=list)
    errors: dict[int, CarouselError] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    def done(self, block: Block, done: Done) -> None:
        self.dones.append(done)

    def left(self, block: Block, row: int, job: Job) -> None:
        self.jobs[row] = job

    def refused(self, block: Block, row: int, error: CarouselError) -> None:
        self.errors[row] = error

    def over(self, block: Block) -> None:
        self.is_over.set()

    @property
    def rows(self) -> list[int]:
        """Those that ran as rows of the block."""
        return [row for done in self.dones for row in done.rows.tolist()]

    async def results(self) -> list[Any]:
        """(next step, y) of each row, or what it was refused with."""
        await asyncio.wait_for(self.is_over.wait(), 10)
        found: dict[int, Any] = dict(self.errors)
        for done in self.dones:
            for row, step, y in zip(done.rows.tolist(), done.steps.tolist(), done.y, strict=True):
                found[row] = step, y
        for row, job in self.jobs.items():
            try:
                answer = await asyncio.wait_for(asyncio.shield(job.future), 10)
                found[row] = answer.step, answer.y
            except CarouselError as error:
                found[row] = error
        assert sorted(found) == list(range(self.size)), "a row was told of never, or twice"
        return [found[row] for row in range(self.size)]


def keys_of(names: Sequence[str], tenant: str = "") -> list[SessionKey]:
    return [SessionKey(tenant, name) for name in names]


def offer(
    engine: Engine,
    names: Sequence[str],
    x: Array,
    steps: Sequence[int] | None = None,
    told: Told | None = None,
    tenant: str = "",
) -> Told:
    """A block of sessions that live; x (N, T, ...)."""
    keys = keys_of(names, tenant)
    found = [engine.seat_of(key) for key in keys]
    seats = [one[0] for one in found if one is not None]
    models = {one[1] for one in found if one is not None}
    assert len(seats) == len(names) and len(models) == 1, "a session has no seat"
    asked = [ANY] * len(names) if steps is None else steps

    def request(row: int) -> Request:
        step = None if asked[row] == ANY else asked[row]
        return Request(keys[row], Given(x[row]), step, origin=ORIGIN)

    told = told or Told(len(names))
    block = Block(
        tenant,
        models.pop(),
        np.array(seats),
        x,
        np.array(asked),
        ORIGIN,
        request,
        engine.seats_generation,
    )
    block.receiver = told
    engine.offer(block)
    return told


async def begin(
    engine: Engine, names: Sequence[str], x: Array, model: str, tenant: str = ""
) -> list[Answer]:
    requests = [
        Request(key, Given(rows), None, model)
        for key, rows in zip(keys_of(names, tenant), x, strict=True)
    ]
    return list(await asyncio.gather(*map(engine.predict, requests)))


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.fixture
def open_store(tmp_path: Path) -> Callable[..., DiskStore]:

    def open_it(name: str = "a") -> DiskStore:
        return DiskStore(tmp_path / name, 1000, 3600.0)

    return open_it


Open = Callable[..., DiskStore]
NAMES = ["a", "bb", "a session with a longer name", "ccc"]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["sine", "series"])
def test_rows_of_a_block_are_what_they_would_be_alone(
    name: str, steps: int, request: pytest.FixtureRequest, open_store: Open
) -> None:
    """The same replies and the same records, to the bit."""
    model: Model = request.getfixturevalue(name)
    width = model.row_shape.tail[0]
    x = [draw(len(NAMES), steps, width, seed=n) for n in range(4)]

    async def scenario(blocks: bool) -> tuple[list[Any], list[Record | None]]:
        store = open_store(f"blocks {blocks}")
        replies: list[Any] = []
        async with running(Catalog([model]), store=store, entropy=lambda: 7) as engine:
            replies += [(a.step, a.y) for a in await begin(engine, NAMES, x[0], model.name)]
            for n in (1, 2, 3):
                if blocks:
                    told = offer(engine, NAMES, x[n])
                    replies += await told.results()
                    assert told.rows == list(range(len(NAMES)))
                else:
                    answers = await begin(engine, NAMES, x[n], model.name)
                    replies += [(a.step, a.y) for a in answers]
            records = await store.get(keys_of(NAMES))
            assert_sound(store)
        return replies, records

    one_by_one, together = run(scenario(False)), run(scenario(True))
    assert together[1] == one_by_one[1]
    for (step, y), (other_step, other_y) in zip(one_by_one[0], together[0], strict=True):
        assert step == other_step
        assert y.dtype == other_y.dtype
        assert np.array_equal(y, other_y)


def test_what_is_not_a_plain_step_leaves_its_block(sine: Model, open_store: Open) -> None:
    """A retry, a wrong step, a session that is gone, rows that are not finite; the others run."""
    names = ["next", "again", "late", "gone", "numbered"]
    x = draw(5, 2, 1)

    async def scenario() -> None:
        async with running(Catalog([sine]), store=open_store()) as engine:
            before = await begin(engine, names, x, "sine-cell")
            more = draw(5, 2, 1, seed=1)
            more[1] = x[1]
            told_of_gone = offer(engine, names, more)  # while it has a seat
            await told_of_gone.results()
            await engine.drop(SessionKey("", "gone"))
            again = draw(5, 2, 1, seed=2)
            again[1] = more[1]
            told = offer_seated(engine, names, again, [ANY, 2, 7, ANY, 4])
            found = await told.results()
            assert told.rows == [0, 4]
            assert found[0][0] == found[4][0] == 6
            first = (await told_of_gone.results())[1]
            assert found[1][0] == 4 and np.array_equal(found[1][1], first[1])  # the reply again
            assert isinstance(found[2], StepConflictError)
            assert found[2].data["expected"] == 4
            assert found[3][0] == 2, "without a step it begins anew, as /predict does"
            assert before[0].created

    def offer_seated(engine: Engine, names: Sequence[str], x: Array, steps: list[int]) -> Told:
        """With the seats that a connection has from before."""
        seats = dict(zip(names, seats_of(engine, names), strict=True))
        told = Told(len(names))
        keys = keys_of(names)
        block = Block(
            "",
            sine,
            np.array([seats[name] for name in names]),
            x,
            np.array(steps),
            ORIGIN,
            lambda row: Request(
                keys[row], Given(x[row]), None if steps[row] == ANY else steps[row]
            ),
            engine.seats_generation,
        )
        block.receiver = told
        engine.offer(block)
        return told

    def seats_of(engine: Engine, names: Sequence[str]) -> list[int]:
        assert engine._blocks is not None
        found = [engine._blocks.table.known(key) for key in keys_of(names)]
        return [seat for seat in found if seat is not None]

    run(scenario())


def test_a_row_that_is_refused_fails_alone(tmp_path: Path, open_store: Open) -> None:
    """x that is not finite, and a result that is not: each its own error, as one by one."""
    model = Model.load(build_artifact(tmp_path, Spec("m", seed=4, overflow_above=50.0)))

    async def scenario() -> None:
        store = open_store()
        async with running(Catalog([model]), store=store) as engine:
            await begin(engine, NAMES, draw(4, 1, 1), "m")
            x = draw(4, 1, 1, seed=1)
            x[1] = 100.0
            found = await offer(engine, NAMES, x).results()
            assert isinstance(found[1], ResultNotFiniteError)
            assert [one[0] for one in found if isinstance(one, tuple)] == [2, 2, 2]
            x[2] = np.nan
            found = await offer(engine, NAMES, x).results()
            assert isinstance(found[1], ResultNotFiniteError)
            assert isinstance(found[2], NotFiniteError)
            records = await store.get(keys_of(NAMES))
            assert [record and record.step for record in records] == [3, 1, 2, 3]

    run(scenario())


def test_requests_of_a_session_keep_their_order(sine: Model, open_store: Open) -> None:
    """Whether they come in blocks or alone."""
    x = draw(1, 9, 1)

    async def scenario() -> None:
        async with running(Catalog([sine]), store=open_store()) as engine:
            key = SessionKey("", "s")
            await begin(engine, ["s"], x[:, :1], "sine-cell")
            alone = await engine.submit(Request(key, Given(x[0, 1:2])))
            one = offer(engine, ["s"], x[:, 2:3])  # behind it, so not as a block
            two = offer(engine, ["s"], x[:, 3:4])
            later = asyncio.create_task(engine.submit(Request(key, Given(x[0, 4:5]))))
            await asyncio.sleep(0)
            answers = [await alone.future]
            found = [*(await one.results()), *(await two.results())]
            answers.append(await (await later).future)
            three = offer(engine, ["s"], x[:, 5:6])
            four = offer(engine, ["s"], x[:, 6:7])
            after = asyncio.create_task(engine.submit(Request(key, Given(x[0, 7:8]))))
            await asyncio.sleep(0)
            found += [*(await three.results()), *(await four.results())]
            answers.append(await (await after).future)
            assert three.rows == four.rows == [0]
            y = whole(sine, x[0, :8])
            assert [answers[0].step, answers[1].step, answers[2].step] == [2, 5, 8]
            steps = [one[0] for one in found if isinstance(one, tuple)]
            assert steps == [3, 4, 6, 7]
            ys = [one[1] for one in found if isinstance(one, tuple)]
            assert np.array_equal(np.concatenate(ys), y[[2, 3, 5, 6]])
            assert np.array_equal(answers[2].y, y[7:8])

    run(scenario())


def test_blocks_of_several_connections_share_a_batch(sine: Model, open_store: Open) -> None:
    """As requests do, unless they have a session in common."""
    metrics = Metrics(CollectorRegistry())
    names = [f"s{n}" for n in range(6)]

    async def scenario() -> None:
        async with running(Catalog([sine]), store=open_store(), metrics=metrics) as engine:
            await begin(engine, names, draw(6, 1, 1), "sine-cell")
            engine.publish()
            before = metrics.samples()
            told = [offer(engine, names[n : n + 2], draw(2, 1, 1, seed=n)) for n in (0, 2, 4)]
            told.append(offer(engine, names[:2], draw(2, 1, 1, seed=9)))
            for one in told:
                assert all(isinstance(row, tuple) for row in await one.results())
            engine.publish()
            after = metrics.samples()
            labels = {"model": "sine-cell", "version": sine.version}

            def grew(name: str, **more: str) -> float:
                return after.of(name, **labels, **more) - before.of(name, **labels, **more)

            assert grew("carousel_batch_rows_count") == 2
            assert grew("carousel_batch_rows_sum") == 8
            assert grew("carousel_steps_total") == 8
            assert grew("carousel_requests_total", protocol="ws", outcome="done") == 8

    run(scenario())


def test_tenants_whose_blocks_wait_take_turns(sine: Model, open_store: Open) -> None:
    """One with many of them does not keep another's waiting for more than one."""

    async def scenario() -> None:
        async with running(Catalog([sine]), store=open_store(), max_batch=2) as engine:
            ended: list[str] = []

            class Ending(Told):
                def over(self, block: Block) -> None:
                    ended.append(block.tenant)
                    super().over(block)

            sessions = {"many": [f"{n}" for n in range(10)], "few": ["0", "1"]}
            for tenant, names in sessions.items():
                await begin(engine, names, draw(len(names), 1, 1), "sine-cell", tenant)
            told: list[Told] = []
            for tenant, names in sessions.items():
                for start in range(0, len(names), 2):
                    pair = names[start : start + 2]
                    told.append(offer(engine, pair, draw(2, 1, 1), None, Ending(2), tenant))
            for one in told:
                assert [row[0] for row in await one.results()] == [2, 2]
            assert ended == ["many", "few", "many", "many", "many", "many"]

    run(scenario())


def test_a_receiver_that_fails_ends_no_engine(sine: Model, open_store: Open) -> None:
    """Its rows are lost to it; the next block is run."""

    class Broken(Told):
        def left(self, block: Block, row: int, job: Job) -> None:
            raise ValueError("a mistake")

    async def scenario() -> None:
        async with running(Catalog([sine]), store=open_store()) as engine:
            await begin(engine, NAMES, draw(4, 1, 1), "sine-cell")
            broken = offer(engine, NAMES, draw(4, 1, 1, seed=1), [0, 1, 1, 1], Broken(4))
            await asyncio.wait_for(broken.is_over.wait(), 10)
            assert broken.rows == [1, 2, 3]
            told = offer(engine, NAMES, draw(4, 1, 1, seed=2))
            assert [row[0] for row in await told.results()] == [2, 3, 3, 3]

    run(scenario())


def test_a_promoted_session_moves_and_goes_on(tmp_path: Path, open_store: Open) -> None:
    """In a block as alone: on the new version, from its state."""
    specs = [Spec("m", seed=1), Spec("m", seed=2, scaling=scaling(1, 1))]
    old, new = (Model.load(build_artifact(tmp_path, spec)) for spec in specs)

    async def scenario() -> None:
        store = open_store()
        async with running(Catalog([old, new]), store=store) as engine:
            await begin(engine, NAMES, draw(4, 1, 1), old.reference)
            await engine.promote("m", old.version, new.version)
            told = offer(engine, NAMES, draw(4, 1, 1, seed=1))
            await told.results()
            assert told.rows == []
            records = await store.get(keys_of(NAMES))
            assert {record and record.version for record in records} == {new.version}
            told = offer(engine, NAMES, draw(4, 1, 1, seed=2))
            assert {one[0] for one in await told.results() if isinstance(one, tuple)} == {3}
            assert told.rows == [0, 1, 2, 3]

    run(scenario())


def test_what_nobody_waits_for_is_not_run(sine: Model, open_store: Open) -> None:
    """Its sessions stay where they are."""

    async def scenario() -> None:
        store = open_store()
        async with running(Catalog([sine]), store=store) as engine:
            await begin(engine, NAMES, draw(4, 1, 1), "sine-cell")
            told = offer(engine, NAMES, draw(4, 1, 1, seed=1))
            assert engine._blocks is not None
            engine._blocks._waiting[""][0].is_abandoned = True
            await asyncio.wait_for(told.is_over.wait(), 10)
            assert (told.dones, told.errors, told.jobs) == ([], {}, {})
            records = await store.get(keys_of(NAMES))
            assert [record and record.step for record in records] == [1, 1, 1, 1]

    run(scenario())


def test_a_store_that_fails_refuses_every_row(
    sine: Model, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its error; what is broken in the server is told as that."""

    async def scenario() -> None:
        store = open_store()
        async with running(Catalog([sine]), store=store) as engine:
            await begin(engine, NAMES, draw(4, 1, 1), "sine-cell")
            for error, told_as in (
                (StoreUnavailableError("the disk is away"), StoreUnavailableError),
                (RuntimeError("a mistake"), InternalError),
            ):

                async def fail(*arguments: Any, error: Exception = error) -> Array:
                    raise error

                with monkeypatch.context() as patched:
                    patched.setattr(store.table, "commit", fail)
                    found = await offer(engine, NAMES, draw(4, 1, 1, seed=1)).results()
                assert {type(one) for one in found} == {told_as}
            found = await offer(engine, NAMES, draw(4, 1, 1, seed=1), [1] * 4).results()
            assert [one[0] for one in found if isinstance(one, tuple)] == [2, 2, 2, 2]

    run(scenario())


def test_a_drain_answers_what_was_accepted(sine: Model, open_store: Open) -> None:
    """And takes no more."""

    async def scenario() -> None:
        async with running(Catalog([sine]), store=open_store()) as engine:
            await begin(engine, NAMES, draw(4, 1, 1), "sine-cell")
            told = offer(engine, NAMES, draw(4, 1, 1, seed=1))
            engine.drain()
            with pytest.raises(DrainingError):
                offer(engine, NAMES, draw(4, 1, 1, seed=2))
        assert [one[0] for one in await told.results() if isinstance(one, tuple)] == [2] * 4

    run(scenario())


def test_a_session_that_another_process_advances_is_read_anew(
    sine: Model, open_store: Open
) -> None:
    """Two workers on one store, block after block in turn."""

    async def scenario() -> None:
        x = draw(6, 4, 1, 1)
        async with (
            running(Catalog([sine]), store=open_store()) as one,
            running(Catalog([sine]), store=open_store()) as other,
        ):
            await begin(one, NAMES, x[0], "sine-cell")
            for n in range(1, 6):
                told = offer(one if n % 2 else other, NAMES, x[n], [n] * 4)
                found = await told.results()
                assert told.rows == [0, 1, 2, 3]
                for row in range(4):
                    y = whole(sine, x[: n + 1, row, 0])
                    assert np.array_equal(found[row][1], y[-1:])

    run(scenario())


def test_an_index_that_is_written_anew_moves_no_session(
    sine: Model, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do seats that are given anew."""
    monkeypatch.setattr(table_module, "MAX_SEATS", 6)

    async def scenario() -> None:
        store = open_store()
        async with running(Catalog([sine]), store=store) as engine:
            names = ["w", "x", "y", "z"]
            await begin(engine, names, draw(4, 1, 1), "sine-cell")
            told = offer(engine, names, draw(4, 1, 1, seed=1))
            await told.results()
            index = store._sessions.index
            generation = index.generation
            monkeypatch.setattr(index_module, "CROWDED", 0.0)
            await begin(engine, ["new"], draw(1, 1, 1), "sine-cell")
            assert index.generation > generation
            told = offer(engine, names, draw(4, 1, 1, seed=2))
            assert {one[0] for one in await told.results() if isinstance(one, tuple)} == {3}
            assert told.rows == [0, 1, 2, 3]
            more = ["1", "2", "3"]
            await begin(engine, more, draw(3, 1, 1), "sine-cell")
            old = engine.seats_generation
            told = offer(engine, names[:1], draw(1, 1, 1, seed=3))
            for key in keys_of(more):
                assert engine.seat_of(key) is not None
            assert engine.seats_generation > old
            assert {one[0] for one in await told.results() if isinstance(one, tuple)} == {4}
            assert told.rows == [], "its seat is another session's now"

    run(scenario())


def test_a_slot_that_is_damaged_is_not_served(sine: Model, open_store: Open) -> None:
    """By a process that did not write it; the others run."""

    async def scenario() -> None:
        store = open_store()
        async with running(Catalog([sine]), store=store) as engine:
            await begin(engine, NAMES, draw(4, 1, 1), "sine-cell")
            assert engine._blocks is not None
            seats = [engine.seat_of(key) for key in keys_of(NAMES)]
            other = open_store()
            records = await other.get(keys_of(NAMES))
            async with running(Catalog([sine]), store=other) as second:
                await begin(second, NAMES, draw(4, 1, 1, seed=1), "sine-cell")
            held = store._sessions.find_locked(SessionKey("", NAMES[1]), store._now_ms())
            assert held is not None and records[1] is not None
            assert all(seats)
            store._sessions._cache.clear()
            # As the disk would have it: the state of one, after the other process wrote it.
            file = held.slot_words
            file[held.slot_at + 16] ^= 1
            told = Told(4)
            block = Block(
                "",
                sine,
                np.array([seat[0] for seat in seats if seat]),
                draw(4, 1, 1, seed=2),
                np.full(4, 2),
                ORIGIN,
                lambda row: Request(keys_of(NAMES)[row], Given(draw(1, 1)), 2),
                engine.seats_generation,
            )
            block.receiver = told
            engine.offer(block)
            found = await told.results()
            assert told.rows == [0, 2, 3]
            assert isinstance(found[1], CarouselError)
            assert found[1].code == "session_gone"

    run(scenario())


def test_requests_that_are_told_of_one_by_one_are_run_one_by_one(
    sine: Model, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An access log has a line for each; and a model that is not isolated has no blocks."""

    async def scenario() -> None:
        store = open_store()
        apart = replace(sine)
        async with running(Catalog([apart]), store=store) as engine:
            await begin(engine, NAMES, draw(4, 1, 1), "sine-cell")
            assert engine.seat_of(SessionKey("", "a")) is not None
            assert engine.seat_of(SessionKey("", "nobody")) is None
            monkeypatch.setattr(apart.runtime, "isolated", False)
            assert engine.seat_of(SessionKey("", "a")) is None

    run(scenario())
