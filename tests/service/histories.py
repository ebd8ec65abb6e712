"""Sessions under everything at once: several engines on one store, faults, crashes, and a journal.

How it works: clients play scripts against engines whose stores yield at every await, fail before
or after they commit (all of it, or a part), and stop for ever: an engine that was stopped there is
a server that was killed there, for nothing that it does between two calls of the store can be seen
by others. Each commit that was done goes into the journal, with who asked for it. What the clients
were told goes into the acknowledgements.
"""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextvars import Context, ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from service.blocks import Block, Done
from service.catalog import Catalog
from service.copying import fork, restore, take_snapshot
from service.engine import Engine
from service.errors import (
    CarouselError,
    IdempotencyConflictError,
    ModelConflictError,
    SessionExistsError,
    SessionGoneError,
    SessionNotFoundError,
    StepConflictError,
    StoreUnavailableError,
)
from service.job import Answer, Job, Opening, Request
from service.model import Model
from service.origin import NOWHERE
from service.promotion import Promotions
from service.session import CONTROL, Record, SessionKey
from service.snapshot import Keyring
from service.store import Commit, Outcome, Store
from service.store.disk.table import DiskTable
from service.store.memory import MemoryStore
from service.store.record_bytes import RecordRows
from service.store.record_table import RecordTable
from service.store.table import Look, Table
from service.wire import Array, RowShape

IDLE_TIMEOUT_S = 60.0
ENGINES = 3
TRIES = 6  # of one request, until its client gives up
KEYRING = Keyring((b"k" * 32,))
REFUSALS = (  # what these scripts may be told, and nothing else
    IdempotencyConflictError,
    ModelConflictError,
    SessionExistsError,
    SessionGoneError,
    SessionNotFoundError,
    StepConflictError,
    StoreUnavailableError,
)
T = TypeVar("T")


class Backend(Protocol):
    """One store, as often opened as there are engines; its time passes when the test says so."""

    def open(self) -> Store: ...

    def now(self) -> float: ...

    def wait(self, seconds: float) -> None: ...


class MemoryBackend:
    def __init__(self) -> None:
        self._now = 0.0
        self._store = MemoryStore(1000, IDLE_TIMEOUT_S, self.now)

    def open(self) -> Store:
        return self._store

    def now(self) -> float:
        return self._now

    def wait(self, seconds: float) -> None:
        self._now += seconds


@dataclass(frozen=True)
class Sent:
    """A request, the same one however often it is sent."""

    number: int
    key: SessionKey
    x: Array
    step: int | None
    model: str | None = None
    opening: Opening = Opening.ANY
    ends: bool = False
    idempotency_key: str | None = None

    @property
    def is_safe(self) -> bool:
        """Whether the server can tell it from another when it comes again."""
        return self.step is not None or self.idempotency_key is not None

    def decode(self, shape: RowShape) -> Array:
        return self.x


@dataclass(frozen=True)
class Ack:
    """A reply that a client has read."""

    sent: Sent
    key: SessionKey
    version: str
    step: int
    created: bool
    restarted: bool
    y: Array


@dataclass(frozen=True, eq=False)
class Change:
    """A fork, a restore or a drop that is under way; equal to itself only."""

    source: SessionKey
    since: int  # the journal's length when it began, or when its snapshot was asked for
    snapshot: bytes | None = None  # what it restores


@dataclass(frozen=True)
class Entry:
    """A commit that was done."""

    commit: Commit
    now: float
    change: Change | None


@dataclass(frozen=True)
class Act:
    """One line of a client's script."""

    kind: str
    session: int  # which
    steps: int  # of a request
    numbered: bool  # it says its step


_change: ContextVar[Change | None] = ContextVar("change", default=None)


class Unreliable:
    """One engine's view of the store."""

    def __init__(self, inner: Store, world: "World", number: int) -> None:
        self._inner = inner
        self._world = world
        self._number = number
        self.is_dead = False
        self.table: Table = RecordTable(self)  # over what is unreliable
        if isinstance(inner.table, DiskTable):
            self.table = UnreliableTable(inner, inner.table, self)

    async def get(self, keys: Sequence[SessionKey]) -> list[Record | None]:
        await self.maybe()
        found = await self._inner.get(keys)
        await self.maybe()
        return found

    async def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        await self.maybe()
        world = self._world
        fails = world.chance(world.faults)
        done = [c for c in commits if not fails or world.chance(0.5)]
        async with world.lock:  # so that the journal is in the order of the commits
            outcomes = await self._inner.commit(done)
            for commit, outcome in zip(done, outcomes, strict=True):
                if outcome is Outcome.DONE and commit.key.tenant != CONTROL:
                    world.journal.append(Entry(commit, world.backend.now(), _change.get()))
        if fails:
            raise StoreUnavailableError("the connection broke")
        await self.maybe()
        return outcomes

    async def commit_rows(self, commit: Callable[[float], Awaitable[list[Commit]]]) -> None:
        """A commit of a table: `commit(share)` does so much of it, and says what it did."""
        await self.maybe()
        world = self._world
        fails = world.chance(world.faults)
        async with world.lock:
            for done in await commit(0.5 if fails else 1.0):
                world.journal.append(Entry(done, world.backend.now(), None))
                world.rows += 1
        if fails:
            raise StoreUnavailableError("the connection broke")
        await self.maybe()

    async def count(self, tenant: str | None = None) -> int:
        return await self._inner.count(tenant)

    async def room_in_s(self, tenant: str | None = None) -> float:
        return await self._inner.room_in_s(tenant)

    async def sweep(self) -> list[SessionKey]:
        return await self._inner.sweep()

    async def close(self) -> None:
        """The store outlives this engine."""

    def draw(self, count: int) -> Array:
        return np.array([self._world.random.random() for _ in range(count)])

    async def maybe(self) -> None:
        """Yield; perhaps the engine is killed here, perhaps the store cannot be reached."""
        world = self._world
        for _ in range(world.random.randrange(4)):
            await asyncio.sleep(0)
        if not self.is_dead and world.chance(world.crashes):
            self.is_dead = True
            world.replace(self._number)
        if self.is_dead:
            await asyncio.Future()
        if world.chance(world.faults):
            raise StoreUnavailableError("the store cannot be reached")


class UnreliableTable:
    """Its table."""

    def __init__(self, inner: Store, table: Table, store: Unreliable) -> None:
        self._inner = inner
        self._table = table
        self._store = store
        self.note, self.seat, self.known = table.note, table.seat, table.known
        self.keys, self.read = table.keys, table.read

    @property
    def generation(self) -> int:
        return self._table.generation

    async def commit(
        self,
        look: Look,
        wanted: Array,
        records: RecordRows,
        steps: int,
        digests: Array,
        states: Array,
        y: Array,
    ) -> Array:
        done = np.zeros(len(wanted), bool)
        keys = self._table.keys(look.held.seats)

        async def commit(share: float) -> list[Commit]:
            nonlocal done
            some = wanted & (self._store.draw(len(wanted)) < share)
            before = await self._inner.get(keys)
            done = await self._table.commit(look, some, records, steps, digests, states, y)
            after = await self._inner.get(keys)
            rows = np.flatnonzero(done).tolist()
            return [Commit(keys[row], before[row], after[row]) for row in rows]

        await self._store.commit_rows(commit)
        return done


@dataclass
class World:
    """Everything of one history."""

    models: list[Model]  # versions of one name, oldest first
    backend: Backend
    random: random.Random
    faults: float  # the chance of one at each call of the store
    crashes: float
    journal: list[Entry] = field(default_factory=list)
    tried: list[tuple[SessionKey, Sent]] = field(default_factory=list)  # to which session
    acks: list[Ack] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)  # those that were acknowledged
    snapshots: list[tuple[SessionKey, int, bytes]] = field(default_factory=list)
    keys: list[SessionKey] = field(default_factory=list)
    rows: int = 0  # commits of blocks

    def __post_init__(self) -> None:
        self.lock = asyncio.Lock()
        self.engines: list[Engine] = []
        self.killed: list[Engine] = []
        self.calls: list[asyncio.Task[Any]] = []  # kept, or they end when nobody looks
        self.stores: list[Unreliable] = []
        self.believed: dict[SessionKey, int] = {}
        self._numbers = itertools.count()
        self.x = np.random.default_rng(self.random.getrandbits(32))
        for number in range(ENGINES):
            self.engines.append(self._launch(number))

    def chance(self, of: float) -> bool:
        return self.random.random() < of

    def replace(self, number: int) -> None:
        """Start another engine for one that was killed."""
        self.killed.append(self.engines[number])
        self.engines[number] = self._launch(number)

    def _launch(self, number: int) -> Engine:
        store = Unreliable(self.backend.open(), self, number)
        self.stores[number : number + 1] = [store]
        engine = Engine(
            Catalog(self.models),
            store,
            max_batch=8,
            max_queue=100,
            max_steps=100,
            entropy=partial(self.random.getrandbits, 63),
            promotions=Promotions(store, IDLE_TIMEOUT_S / 4, self.backend.now),
        )
        # In a context of its own: what a client's task is about is not what the engine is about.
        asyncio.get_running_loop().call_soon(engine.start, context=Context())
        return engine

    # What clients do ----------------------------------------------------------------------------

    async def play(self, script: Sequence[Act]) -> None:
        """Do the acts of one client, one after another."""
        for act in script:
            while self.random.random() < 0.3:
                await asyncio.sleep(0)
            await getattr(self, f"_{act.kind}")(act)

    async def _request(self, act: Act) -> None:
        sent = self._new(act, self.believed.get(self._key(act), 0))
        await self._send(sent)

    async def _twice(self, act: Act) -> None:
        """A client that sends again before it has heard anything."""
        await self._send_often(self._new(act, self.believed.get(self._key(act), 0)))

    async def _block(self, act: Act) -> None:
        """Requests of several sessions at once, those that may as one block; perhaps two blocks."""
        number = self.random.randrange(ENGINES)
        engine, store = self.engines[number], self.stores[number]
        sents: dict[Model | None, dict[int, Sent]] = {}
        for n, key in enumerate(self.keys):
            sent = replace(self._new(act, self.believed.get(key, 0)), key=key, model=None)
            found = engine.seat_of(key)
            seat, model = (n, None) if found is None else found
            sents.setdefault(model, {})[seat] = sent
        alone = sents.pop(None, {}).values()
        blocks = [self._send_block(engine, store, model, s) for model, s in sents.items() if model]
        later = replace(act, numbered=False)
        again = (self._request(later) for _ in range(act.session % 2))
        await asyncio.gather(*blocks, *(self._send(sent) for sent in alone), *again)

    async def _send_block(
        self, engine: Engine, store: Unreliable, model: Model, sents: dict[int, Sent]
    ) -> None:
        requests = [_request_of(sent, sent.key) for sent in sents.values()]
        self.tried += [(sent.key, sent) for sent in sents.values()]
        told = Told(list(sents.values()))
        block = Block(
            "",
            model,
            np.array(list(sents)),
            np.stack([sent.x for sent in sents.values()]),
            np.array([-1 if sent.step is None else sent.step for sent in sents.values()]),
            NOWHERE,
            requests.__getitem__,
            engine.seats_generation,
        )
        block.receiver = told
        engine.offer(block)
        while not (told.is_over and all(job.future.done() for _, job in told.jobs)):
            if store.is_dead:
                return
            await asyncio.sleep(0)
        if store.is_dead:
            return
        for row, answer in told.answers(model):
            sent = told.sents[row]
            self.believed[sent.key] = answer.step
            self.acks.append(_ack(sent, sent.key, answer))
        for row, error in told.errors():
            if not isinstance(error, REFUSALS):
                raise error
            if isinstance(step := error.data.get("expected"), int):
                self.believed[told.sents[row].key] = step

    async def _start(self, act: Act) -> None:
        """Begin the session, or begin it anew; a step or a key makes it safe to do it again."""
        sent = self._new(act, 0)
        key = f"key {sent.number}" if act.steps == 1 else None
        await self._send_often(replace(sent, opening=Opening.START, idempotency_key=key))

    async def _live(self, act: Act) -> None:
        sent = self._new(act, self.believed.get(self._key(act), 0))
        await self._send(replace(sent, opening=Opening.LIVE))

    async def _end(self, act: Act) -> None:
        """The last request of a session; without a number perhaps its first as well."""
        sent = self._new(act, self.believed.get(self._key(act), 0))
        opening = Opening.LIVE if act.numbered else Opening.ANY
        await self._send(replace(sent, opening=opening, ends=True))

    async def _once(self, act: Act) -> None:
        """One request that is a whole session."""
        await self._send(replace(self._new(act, 0), opening=Opening.START, ends=True))

    async def _keyed(self, act: Act) -> None:
        """What a client does that numbers nothing and tells its requests apart by keys."""
        sent = replace(self._new(act, 0), step=None)
        await self._send_often(replace(sent, idempotency_key=f"key {sent.number}"))

    async def _reuse(self, act: Act) -> None:
        """Other rows under the last key that was acknowledged."""
        acks = [ack for ack in self.acks if ack.sent.idempotency_key is not None]
        if acks:
            sent = replace(self._new(act, 0), step=None, key=acks[-1].key)
            await self._send(replace(sent, idempotency_key=acks[-1].sent.idempotency_key))

    async def _gap(self, act: Act) -> None:
        await self._send(self._new(act, self.believed.get(self._key(act), 0) + act.steps))

    async def _again(self, act: Act) -> None:
        """The last acknowledged request of a session once more, or sent to a copy of it."""
        safe = [ack for ack in self.acks if ack.sent.is_safe]
        if safe:
            sent = safe[-1 - act.steps % len(safe)].sent
            await self._send(sent, self._key(act) if act.numbered else sent.key)

    async def _drop(self, act: Act) -> None:
        change = Change(self._key(act), len(self.journal))
        await self._try(lambda engine: engine.drop(self._key(act)), change)

    async def _fork(self, act: Act) -> None:
        source = self._key(act)
        target = SessionKey("", f"fork {len(self.keys)}")
        self.keys.append(target)

        async def do(engine: Engine) -> tuple[SessionKey, Record]:
            step = self.believed.get(source) if act.numbered else None
            return await fork(engine, source, target.session_id, step)

        await self._try(do, Change(source, len(self.journal)))

    async def _keyed_fork(self, act: Act) -> None:
        """A client that does not know whether its fork was done, and asks again."""
        source = self._key(act)
        key = f"fork {next(self._numbers)}"
        change = Change(source, len(self.journal))
        for _ in range(TRIES):
            done = await self._try(
                lambda engine: fork(engine, source, None, None, idempotency_key=key), change
            )
            if done is not None:
                self.keys.append(done[0])
                return

    async def _snapshot(self, act: Act) -> None:
        key, since = self._key(act), len(self.journal)

        file = await self._try(lambda e: take_snapshot(e, key, KEYRING, datetime.now(UTC)))
        if file is not None:
            self.snapshots.append((key, since, file))

    async def _restore(self, act: Act) -> None:
        if not self.snapshots:
            return
        source, since, file = self.snapshots[act.steps % len(self.snapshots)]
        change = Change(source, since, file)
        await self._try(lambda e: restore(e, self._key(act), file, KEYRING, act.numbered), change)

    async def _promote(self, act: Act) -> None:
        """To the newest version; sometimes, a roll-back, to the one before."""
        to = self.models[0 if act.steps == 1 else 1].version
        await self._try(lambda engine: engine.promote("m", None, to))

    async def _learn(self, act: Act) -> None:
        """Every engine looks at what others promoted."""
        for engine, store in zip(list(self.engines), list(self.stores), strict=True):
            await self._try(lambda e: e.promotions.refresh(["m"]), at=(engine, store))

    async def _wait(self, act: Act) -> None:
        self.backend.wait(act.steps * IDLE_TIMEOUT_S / 4)

    # How they do it -----------------------------------------------------------------------------

    def _key(self, act: Act) -> SessionKey:
        return self.keys[act.session % len(self.keys)]

    def _new(self, act: Act, step: int) -> Sent:
        x = self.x.normal(size=(act.steps, 1))
        oldest = self.models[0].reference if step == 0 and self.chance(0.7) else None
        numbered = step if act.numbered else None
        return Sent(next(self._numbers), self._key(act), x, numbered, oldest)

    async def _send_often(self, sent: Sent) -> None:
        """At once, as a client does that has heard nothing; once if that is not safe."""
        await asyncio.gather(*(self._send(sent) for _ in range(3 if sent.is_safe else 1)))

    async def _send(self, sent: Sent, key: SessionKey | None = None) -> None:
        """Until there is a reply; a request without a number or a key is sent once."""
        key = key or sent.key
        self.tried.append((key, sent))
        request = _request_of(sent, key)
        for _ in range(TRIES if sent.is_safe else 1):
            answer = await self._try(lambda engine: engine.predict(request), key=key)
            if answer is not None:
                self.believed[key] = 0 if sent.ends else answer.step
                self.acks.append(_ack(sent, key, answer))
                return

    async def _try(
        self,
        do: Callable[[Engine], Coroutine[Any, Any, T]],
        change: Change | None = None,
        key: SessionKey | None = None,
        at: tuple[Engine, Unreliable] | None = None,
    ) -> T | None:
        """What an engine, any of them, does; None where it refused, failed, or was killed."""
        number = self.random.randrange(ENGINES)
        engine, store = at or (self.engines[number], self.stores[number])
        token = _change.set(change)
        task = asyncio.create_task(do(engine))
        self.calls.append(task)
        _change.reset(token)
        while not task.done() and not store.is_dead:
            await asyncio.sleep(0)
        if not task.done():
            return None
        error = task.exception()
        if store.is_dead:
            return None  # what it said was not heard
        if error is None:
            self.changes += [change] if change else []
            return task.result()
        if not isinstance(error, REFUSALS):
            raise error
        if key is not None and isinstance(step := error.data.get("expected"), int):
            self.believed[key] = step
        return None

    async def end(self) -> None:
        """Cancel what killed engines and their clients have left behind."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self.calls, return_exceptions=True)


class Told:
    """What a block's receiver was told."""

    def __init__(self, sents: list[Sent]) -> None:
        self.sents = sents
        self.jobs: list[tuple[int, Job]] = []
        self.is_over = False
        self._done: list[Done] = []
        self._refused: list[tuple[int, CarouselError]] = []

    def done(self, block: Block, done: Done) -> None:
        self._done.append(done)

    def left(self, block: Block, row: int, job: Job) -> None:
        self.jobs.append((row, job))

    def refused(self, block: Block, row: int, error: CarouselError) -> None:
        self._refused.append((row, error))

    def over(self, block: Block) -> None:
        self.is_over = True

    def answers(self, model: Model) -> Iterator[tuple[int, Answer]]:
        for done in self._done:
            for row, step, y in zip(done.rows.tolist(), done.steps.tolist(), done.y, strict=True):
                key = self.sents[row].key
                yield row, Answer(key.session_id, model.name, model.version, step, False, y, {})
        for row, job in self.jobs:
            if job.future.exception() is None:
                yield row, job.future.result()

    def errors(self) -> Iterator[tuple[int, CarouselError]]:
        yield from self._refused
        for row, job in self.jobs:
            if error := job.future.exception():
                assert isinstance(error, CarouselError), error
                yield row, error


def _request_of(sent: Sent, key: SessionKey) -> Request:
    return Request(
        key,
        sent,
        sent.step,
        sent.model,
        opening=sent.opening,
        ends=sent.ends,
        idempotency_key=sent.idempotency_key,
    )


def _ack(sent: Sent, key: SessionKey, answer: Answer) -> Ack:
    return Ack(sent, key, answer.version, answer.step, answer.created, answer.restarted, answer.y)
