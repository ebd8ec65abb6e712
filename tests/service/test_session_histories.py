"""Any history of sessions gives what a plain loop over its journal gives, bit for bit.

A store is tried by an entry of `BACKENDS`.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.job import Opening, Request
from service.model import Model
from service.session import LastReply, Record, SessionKey, digest_of, digest_of_key
from service.snapshot import read_snapshot, record_of
from service.store.disk.machine import Machine
from service.store.disk.store import DiskStore
from service.store.redis import RedisStore
from service.store.redis_link import Link
from tests.service.build_artifact import Spec, build_artifact, scaling
from tests.service.histories import (
    IDLE_TIMEOUT_S,
    KEYRING,
    Ack,
    Act,
    Backend,
    Change,
    Entry,
    MemoryBackend,
    Sent,
    World,
)
from tests.service.redis_servers import one_server

BACKENDS: dict[str, Callable[[], Backend]] = {"memory": MemoryBackend}
SESSIONS = 3
KINDS = (
    *("request",) * 6,
    *("block",) * 3,
    *("twice",) * 3,
    *("gap", "again", "again", "drop", "fork", "fork", "keyed_fork", "keyed_fork"),
    *("snapshot", "restore", "restore"),
    *("start", "start", "live", "end", "end", "once", "keyed", "keyed", "keyed", "reuse"),
    *("promote", "learn", "learn", "wait"),
)
ACTS = st.builds(
    Act,
    kind=st.sampled_from(KINDS),
    session=st.integers(0, 7),
    steps=st.integers(1, 4),
    numbered=st.integers(0, 3).map(bool),  # most of them are
)
SCRIPTS = st.lists(st.lists(ACTS, min_size=1, max_size=9), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """Two versions with the same ports, other weights and other units."""
    root = tmp_path_factory.mktemp("versions")
    specs = [Spec("m", hidden_size=4, seed=1), Spec("m", hidden_size=4, seed=2)]
    specs[1] = Spec("m", hidden_size=4, seed=2, scaling=scaling(1, 1))
    paths: list[Path] = [build_artifact(root, spec) for spec in specs]
    return [Model.load(path) for path in paths]


@dataclass(frozen=True)
class Content:
    """All of a record that can be seen, and which advances made it."""

    version: str
    step: int
    state: bytes
    last: LastReply
    advances: tuple[int, ...]  # numbers of the requests, each once


class Oracle:
    """What the journal makes of every session; it knows the model and the rules, no engine."""

    def __init__(self, world: World) -> None:
        self.models = {model.version: model for model in world.models}
        self.requests = {
            digest_of(model.encode(sent.x)): sent
            for _, sent in world.tried
            for model in world.models
        }
        self.tried = world.tried
        self.ends: list[tuple[SessionKey, Content]] = []  # what requests ended, as it stood
        self.now: dict[SessionKey, Content] = {}
        self.births: dict[SessionKey, tuple[int, int]] = {}
        self.touched: dict[SessionKey, float] = {}
        self.ever: list[tuple[SessionKey, Content | None]] = []  # as the journal goes
        for entry in world.journal:
            self.follow(entry)

    def follow(self, entry: Entry) -> None:
        key, before, after = entry.commit.key, entry.commit.before, entry.commit.after
        held = self.now.pop(key, None)
        if before is None and held is not None:
            assert entry.now - self.touched[key] >= IDLE_TIMEOUT_S, "a live session was lost"
            held = None
        assert (before is None) == (held is None)
        assert before is None or (before.birth, before.step) == self.births[key]
        content = None
        if after is not None:
            content = self.copied(entry.change, after) if entry.change else None
            content = content or self.advanced(held, after)
            assert content_of(after) == (content.version, content.step, content.state, content.last)
            self.now[key] = content
            self.births[key] = after.birth, after.step
            self.touched[key] = entry.now
        elif entry.change is None:
            assert held is not None, "the end of nothing was committed"
            assert self.is_asked_to_end(key, held), "a session ended that nobody ended"
            self.ends.append((key, held))
        self.ever.append((key, content))

    def is_asked_to_end(self, key: SessionKey, held: Content) -> bool:
        return any(
            sent.ends and (sent.opening is Opening.START or sent.step in (None, held.step))
            for its_key, sent in self.tried
            if its_key == key
        )

    def advanced(self, held: Content | None, after: Record) -> Content:
        """The plain loop's turn: the request's rows, run alone, from the state that was left."""
        sent = self.requests[after.last.digest]
        assert not sent.ends, "a session that was ended is there"
        assert held or sent.opening is not Opening.LIVE, "a session began that was to be there"
        if held and sent.is_safe and held.advances[-1] == sent.number:
            raise AssertionError("the last request ran twice")
        key_digest = digest_of_key(sent.idempotency_key)
        if held and sent.step is None and key_digest:
            assert held.last.key_digest != key_digest, "the last request's key ran twice"
        is_restarted = held is not None and sent.opening is Opening.START
        if is_restarted:
            held = None
        model = self.models[after.version]
        start = held.step if held else 0
        assert sent.step in (None, start), "a request ran where it did not belong"
        x = model.encode(sent.x)
        (y,), (state,), _ = model.run([x], [held.state if held else model.initial_state])
        reply = (digest_of(x), y.tobytes(), held is None, is_restarted, key_digest)
        last = LastReply(start, *reply)
        assert sent.step is None or sent.number not in (held.advances if held else ()), "ran twice"
        advances = (*(held.advances if held else ()), sent.number)
        return Content(model.version, start + len(x), state, last, advances)

    def copied(self, change: Change, after: Record) -> Content:
        """One of the contents that the source had since the copying began."""
        earlier = [c for key, c in self.ever[: change.since] if key == change.source][-1:]
        later = [c for key, c in self.ever[change.since :] if key == change.source]
        for content in [*earlier, *later]:
            if content and content_of(after) == seen(content):
                return content
        raise AssertionError("a copy of something that never was")

    def answer(self, ack: Ack) -> None:
        """The reply is that of exactly one advance of its session, or of what it is a copy of."""
        if ack.sent.ends:
            assert any(self.is_end(ack, held) for held in self.ended_by(ack)), "no such end"
            return
        replies = {
            content.last.y
            for key, content in self.ever
            if key == ack.key and content and content.advances[-1] == ack.sent.number
            if content.version == ack.version and content.step == ack.step
            if content.last.created is ack.created and content.last.restarted is ack.restarted
        }
        model = self.models[ack.version]
        ys = [np.frombuffer(y, "<f4").reshape(len(ack.sent.x), 1) for y in replies]
        assert any(np.array_equal(model.decode(y), ack.y) for y in ys), "a reply to no advance"

    def ended_by(self, ack: Ack) -> list[Content | None]:
        """What the request may have found, and left nothing of."""
        found: list[Content | None] = [held for key, held in self.ends if key == ack.key]
        if ack.restarted:  # so there was one, and it does not count any more
            return [None] if found else []
        if ack.created:
            return [None] if ack.sent.opening is not Opening.LIVE else []
        return found if ack.sent.opening is not Opening.START else []

    def is_end(self, ack: Ack, held: Content | None) -> bool:
        model = self.models[ack.version]
        x = model.encode(ack.sent.x)
        (y,), _, _ = model.run([x], [held.state if held else model.initial_state])
        start = held.step if held else 0
        is_there = ack.sent.step in (None, start) and ack.step == start + len(x)
        return is_there and np.array_equal(model.decode(y), ack.y)


def content_of(record: Record) -> tuple[str, int, bytes, LastReply]:
    return record.version, record.step, record.state, record.last


def seen(content: Content) -> tuple[str, int, bytes, LastReply]:
    return content.version, content.step, content.state, content.last


async def live(world: World, scripts: list[list[Act]]) -> None:
    """Play all scripts at once, then let the faults stop and look at every session."""
    world.keys += [SessionKey("", f"s{n}") for n in range(SESSIONS)]
    try:
        await asyncio.wait_for(asyncio.gather(*map(world.play, scripts)), timeout=30)
        world.faults = world.crashes = 0.0
        oracle = Oracle(world)
        for ack in world.acks:
            oracle.answer(ack)
        done: dict[Change | None, list[float]] = {}  # when
        for entry in world.journal:
            done.setdefault(entry.change, []).append(entry.now)
        assert all(change in done for change in world.changes), "a change that never was"
        for change, when in done.items():
            lived = all(late - early < IDLE_TIMEOUT_S for early, late in pairwise(when))
            assert change is None or len(when) == 1 or not lived, "a change was done twice"
        for key, _, file in world.snapshots:
            snapshot = read_snapshot(file, "", KEYRING)
            record = record_of(snapshot, world.models[0].artifact.layout, 0)
            assert content_of(record) in [seen(c) for k, c in oracle.ever if k == key and c]
        await look(world, oracle)
    finally:
        await world.end()


async def look(world: World, oracle: Oracle) -> None:
    """Every session stands where the oracle says, and goes on from there."""
    store = world.backend.open()
    for key in world.keys:
        (record,) = await store.get([key])
        content = oracle.now.get(key)
        if content and world.backend.now() - oracle.touched[key] >= IDLE_TIMEOUT_S:
            content = None
        assert (record and content_of(record)) == (content and seen(content))
        sent = Sent(-1, key, world.x.normal(size=(2, 1)), content.step if content else 0)
        answer = await asyncio.wait_for(world.engines[0].predict(Request(key, sent, sent.step)), 30)
        assert answer.step == (sent.step or 0) + 2
        assert answer.created is (content is None)
        model = oracle.models[answer.version]
        state = content.state if content else model.initial_state
        (y,), _, _ = model.run([model.encode(sent.x)], [state])
        assert np.array_equal(answer.y, model.decode(y))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """The engines log every fault that they are given."""
    caplog.set_level(logging.CRITICAL, "carousel")
    caplog.set_level(logging.CRITICAL, "carousel.engine")


@pytest.mark.parametrize("backend", BACKENDS)
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    scripts=SCRIPTS,
    seed=st.integers(0, 2**32 - 1),
    faults=st.sampled_from([0.0, 0.02, 0.1]),
    crashes=st.sampled_from([0.0, 0.01, 0.05]),
)
def test_any_history_gives_what_a_plain_loop_gives(
    versions: list[Model],
    backend: str,
    scripts: list[list[Act]],
    seed: int,
    faults: float,
    crashes: float,
) -> None:
    """No step lost, none doubled, each acknowledged reply that of exactly one advance."""

    async def scenario() -> None:
        world = World(versions, BACKENDS[backend](), random.Random(seed), faults, crashes)
        await live(world, scripts)

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("part", range(4))
def test_long_histories_give_what_a_plain_loop_gives(
    versions: list[Model], backend: str, part: int
) -> None:
    """Drawn without hypothesis, which keeps its examples short: four clients of forty acts each."""

    async def scenario(seed: int) -> Counter[str]:
        draw = random.Random(seed)
        scripts = [[_act(draw) for _ in range(40)] for _ in range(4)]
        world = World(versions, BACKENDS[backend](), draw, faults=0.03, crashes=0.01)
        await live(world, scripts)
        return Counter(
            advances=len(world.journal),
            acks=len(world.acks),
            copies=sum(entry.change is not None for entry in world.journal),
            moved=sum(
                entry.commit.before is not None
                and entry.commit.after is not None
                and entry.change is None
                and entry.commit.before.version != entry.commit.after.version
                for entry in world.journal
            ),
            killed=len(world.killed),
            restarted=sum(ack.restarted for ack in world.acks),
            ended=sum(ack.sent.ends and not ack.created for ack in world.acks),
            keyed=sum(ack.sent.idempotency_key is not None for ack in world.acks),
        )

    seen = sum((asyncio.run(scenario(part * 1000 + n)) for n in range(75)), Counter[str]())
    wanted = ("advances", "acks", "copies", "moved", "killed", "restarted", "ended", "keyed")
    assert min(seen[what] for what in wanted) > 100, seen


class RedisBackend:
    """A real server, by whose clock nothing expires in so short a time."""

    def __init__(self, url: str) -> None:
        self.store = RedisStore(Link(url), 1000, IDLE_TIMEOUT_S)

    def open(self) -> RedisStore:
        return self.store

    def now(self) -> float:
        return 0.0

    def wait(self, seconds: float) -> None:
        """Expiry is tried in memory, and by the contract of the stores."""


class DiskBackend:
    """Each engine opens the same directory, as each worker does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._now = 1000.0
        self.stores: list[DiskStore] = []

    def open(self) -> DiskStore:
        machine = Machine(boot=1, since_boot=self.now, wall=self.now)
        self.stores.append(DiskStore(self._path, 1000, IDLE_TIMEOUT_S, machine=machine))
        return self.stores[-1]

    def now(self) -> float:
        return self._now

    def wait(self, seconds: float) -> None:
        self._now += seconds


@pytest.mark.slow
def test_histories_over_the_disk(versions: list[Model], tmp_path: Path) -> None:
    """The same in files, with expiry; engines that were killed never close theirs."""

    async def scenario(seed: int) -> tuple[int, int]:
        draw = random.Random(seed)
        backend = DiskBackend(tmp_path / str(seed))
        world = World(versions, backend, draw, faults=0.03, crashes=0.01)
        try:
            await live(world, [[_act(draw) for _ in range(20)] for _ in range(4)])
        finally:
            for store in backend.stores:
                await store.close()
        return len(world.journal), world.rows

    found = [asyncio.run(scenario(seed)) for seed in range(20)]
    assert sum(commits for commits, _ in found) > 300
    assert sum(rows for _, rows in found) > 100, "blocks did not run"


@pytest.mark.slow
@pytest.mark.needs("redis-server")
def test_histories_over_redis(versions: list[Model], tmp_path: Path) -> None:
    """The same, where a commit is a round trip and a script of the server."""

    async def scenario(url: str, seed: int) -> int:
        draw = random.Random(seed)
        backend = RedisBackend(url)
        world = World(versions, backend, draw, faults=0.03, crashes=0.01)
        try:
            await live(world, [[_act(draw) for _ in range(20)] for _ in range(4)])
        finally:
            await backend.store.close()
        return len(world.journal)

    with one_server(tmp_path) as server:
        commits = 0
        for seed in range(20):
            server.command("FLUSHALL")
            commits += asyncio.run(scenario(server.url, seed))
        assert commits > 300


def _act(draw: random.Random) -> Act:
    return Act(draw.choice(KINDS), draw.randrange(8), draw.randint(1, 4), draw.random() < 0.75)
