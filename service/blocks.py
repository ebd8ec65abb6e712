"""Requests of many sessions that came together, and are read, run and committed as arrays.

Rules
- A block is one request each of several sessions that live on one model, all of equally many steps.
  Blocks that wait run together, up to a batch, where they have no session in common.
- A row that is not what it should be leaves its block and goes the way of every request, through
  the batcher: one that is not at its session's next step, or whose session has something waiting
  there, is gone, has moved on, or is promoted to another version; one whose x is refused, or whose
  result is not finite. Nothing of it was committed.
- Requests of one session keep their order. A row that leaves its block stands in the batcher before
  the next block runs, and what is in the batcher goes before a block; a request that comes after a
  block waits outside until that has run (`passed`).
- A block whose time is up when its turn comes is refused; one that has begun is answered.
- The blocks that wait, and the batcher, take turns; and so do the tenants whose blocks wait.

What a block computes and writes is to the bit what its rows would, one by one: the laws' tests run
both ways.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np

from service.batcher import Batcher
from service.catalog import Catalog
from service.errors import CarouselError, ClientError, InternalError
from service.job import Job, Request, timed_out
from service.layout import State
from service.logs import about
from service.model import Model
from service.observer import Observer, Work
from service.origin import Origin
from service.promotion import Promotions
from service.session import SessionKey, digests_of
from service.store.record_bytes import RecordRows
from service.store.table import Look, Table

Array = np.ndarray

MAX_STEPS = 128  # of a row: as long as a slice of the batcher

logger = logging.getLogger("carousel.engine")


@dataclass(slots=True)
class Done:
    """What became of rows that ran and are committed."""

    rows: Array  # (n,) int64: which of the block, ascending
    steps: Array  # (n,) int64: the index of each session's next step
    y: Array  # (n, T, ...) in raw units


class Receiver(Protocol):
    """Who is told what becomes of a block: each of its rows once."""

    def done(self, block: "Block", done: Done) -> None: ...

    def left(self, block: "Block", row: int, job: Job) -> None:
        """It goes on as a job of its own, whose future gives its answer."""
        ...

    def refused(self, block: "Block", row: int, error: CarouselError) -> None: ...

    def over(self, block: "Block") -> None:
        """All of it has been told."""
        ...


@dataclass(eq=False, slots=True)
class Block:
    """One request of each of N sessions."""

    tenant: str
    model: Model  # that they live on
    seats: Array  # (N,) int64, none twice: `Engine.seat_of`
    x: Array  # (N, T, ...) in raw units, float64, or int64 for ids
    steps: Array  # (N,) int64: the index of each first row; -1: the request has no `step`
    origin: Origin
    request: Callable[[int], Request]  # a row as the request that it is
    generation: int  # of the seats
    receiver: Receiver = field(init=False)
    arrived_s: float = 0.0  # the observer's
    is_abandoned: bool = False  # nobody waits for it

    def __len__(self) -> int:
        return len(self.seats)


@dataclass(slots=True)
class Blocks:
    """Those that wait in one engine, and how they are run."""

    table: Table
    catalog: Catalog
    promotions: Promotions
    observer: Observer
    max_batch: int
    pool: Executor
    inline_s: float
    batcher: Batcher[Work]
    take_up: Callable[[Block, int], None]  # let a row go on as a job
    timeout_s: float | None = None  # what any request may take
    _waiting: dict[str, deque[Block]] = field(default_factory=dict)  # by tenant, in order of turn
    _running: list[Block] = field(default_factory=list)
    _passed: asyncio.Event = field(default_factory=asyncio.Event)
    _records: "WeakKeyDictionary[Model, RecordRows]" = field(default_factory=WeakKeyDictionary)

    def add(self, block: Block) -> None:
        """Let a block wait for its turn."""
        block.arrived_s = self.observer.clock()
        self._waiting.setdefault(block.tenant, deque()).append(block)
        self.batcher.hold(block.tenant, len(block))

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def has_any(self) -> bool:
        """Whether one waits or runs."""
        return bool(self._waiting or self._running)

    def seat_of(self, key: SessionKey) -> tuple[int, Model] | None:
        """As `Engine.seat_of`."""
        found = None if self.observer.tells_each else self.table.seat(key)
        if found is None:
            return None
        seat, name, version = found
        model = self.catalog.loaded(name, version)
        return None if model is None or not model.runtime.isolated else (seat, model)

    async def passed(self, key: SessionKey) -> None:
        """Return once no block that waits or runs has a row of this session."""
        while self.has_any and self._hold(key):
            self._passed.clear()
            await self._passed.wait()

    def _hold(self, key: SessionKey) -> bool:
        seat = self.table.known(key)
        if seat is None:
            return False
        waiting = self._waiting.get(key.tenant, ())
        return any((block.seats == seat).any() for block in (*self._running, *waiting))

    async def run(self) -> int:
        """Run those whose turn it is; how many rows are done with."""
        blocks = self._running = self._take()
        rows = sum(len(block) for block in blocks)
        open_rows = {block: np.ones(len(block), bool) for block in blocks}
        error: CarouselError | None = None
        late = {block: why for block in blocks if (why := self._too_late(block)) is not None}
        try:
            wanted = [b for b in blocks if not b.is_abandoned and b not in late]
            await self._run(wanted, open_rows)
        except CarouselError as why:
            logger.error("a block of %d requests failed: %s", rows, why.message, extra=_of(blocks))
            error = why
        except Exception:
            logger.exception("a block of %d requests failed", rows, extra=_of(blocks))
            error = InternalError("the server failed; its log says why")
        self._running = []
        for block in blocks:
            self.batcher.let_go(block.tenant, len(block))
            for row in np.flatnonzero(open_rows[block]).tolist():
                try:
                    self._settle(block, row, late.get(block, error))
                except Exception:  # a receiver's: it fails that row, and never the engine
                    logger.exception("a row could not be told what became of it")
            block.receiver.over(block)
        self._passed.set()
        return rows

    def _too_late(self, block: Block) -> CarouselError | None:
        timeout_s = block.origin.within(self.timeout_s).timeout_s
        if timeout_s is None or self.observer.clock() - block.arrived_s < timeout_s:
            return None
        return timed_out(timeout_s)

    def _settle(self, block: Block, row: int, error: CarouselError | None) -> None:
        if block.is_abandoned:
            self.observer.abandon_row(block)
        elif error is None:
            self.take_up(block, row)
        else:
            self.observer.refuse_row(block, error)
            block.receiver.refused(block, row, type(error)(error.message, **error.data))

    def _take(self) -> list[Block]:
        """The first of the tenant whose turn it is, and what can run with it, tenant by tenant."""
        taken: list[Block] = []
        seats: Array = np.empty(0, np.int64)
        is_growing = True
        while is_growing:
            is_growing = False
            for tenant in list(self._waiting):
                block = self._waiting[tenant][0]
                first = taken[0] if taken else block
                together = np.concatenate([seats, block.seats])
                if taken and (
                    block.model is not first.model
                    or block.x.shape[1:] != first.x.shape[1:]
                    or len(together) > self.max_batch
                    or len(np.unique(together)) < len(together)
                ):
                    continue
                taken.append(block)
                seats, is_growing = together, True
                queue = self._waiting.pop(tenant)
                queue.popleft()
                if queue:
                    self._waiting[tenant] = queue  # at the end: the others have their turn first
        return taken

    async def _run(self, blocks: Sequence[Block], open_rows: dict[Block, Array]) -> None:
        if not blocks or not self._may_run(blocks):
            return
        model, steps = blocks[0].model, blocks[0].x.shape[1]
        seats = _joined([block.seats for block in blocks])
        asked = _joined([block.steps for block in blocks])
        at = self._idle(seats)
        if at is not None:
            seats, asked = seats[at], asked[at]
        x = _joined([block.x for block in blocks])
        try:
            x = model.encode_many(x if at is None else x[at])
        except ClientError:
            if len(blocks) > 1:  # so that it is one of them that suffers
                for block in blocks:
                    await self._run([block], open_rows)
            return
        records = self._records_of(model)
        with self.observer.reading:
            look = await self.table.read(seats, records)
        if not len(look.rows):
            return
        if len(look.rows) < len(seats):
            x, asked = x[look.rows], asked[look.rows]
        self.catalog.note_use(model.name, model.version)
        self.observer.take_blocks(blocks)
        states = model.artifact.layout.unpack_rows(look.states)
        y, after, finite = await self._compute(model, x, states)
        wanted = finite & ((asked == -1) | (asked == look.steps))
        with self.observer.committing:
            done = await self.table.commit(
                look,
                wanted,
                records,
                steps,
                digests_of(x),
                model.artifact.layout.pack_rows(after),
                _bytes_of(y),
            )
        rows = look.rows if at is None else at[look.rows]
        self._tell(blocks, open_rows, rows, done, look, model.decode(y))

    def _may_run(self, blocks: Sequence[Block]) -> bool:
        model = blocks[0].model
        return (
            all(block.generation == self.table.generation for block in blocks)
            and self.catalog.serves(model)
            and not self.promotions.moves(model.name, model.version)
        )

    def _idle(self, seats: Array) -> Array | None:
        """The rows whose sessions have nothing in the batcher; None: all."""
        if not self.batcher.has_jobs:
            return None
        is_idle = [not self.batcher.is_busy(key) for key in self.table.keys(seats)]
        return None if all(is_idle) else np.flatnonzero(is_idle)

    async def _compute(self, model: Model, x: Array, states: State) -> tuple[Array, State, Array]:
        rows, steps = x.shape[:2]
        with self.observer.running(model, rows, steps):
            if model.cost.estimate_s(rows, steps) < self.inline_s:
                return model.run_many(x, states)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.pool, partial(model.run_many, x, states))

    def _tell(
        self,
        blocks: Sequence[Block],
        open_rows: dict[Block, Array],
        rows: Array,
        done: Array,
        look: Look,
        y: Array,
    ) -> None:
        steps = look.steps + y.shape[1]
        if not done.all():
            rows, steps, y = rows[done], steps[done], np.ascontiguousarray(y[done])
        start = 0
        ends = np.cumsum([len(block) for block in blocks])
        cuts = [0, *np.searchsorted(rows, ends).tolist()]
        for block, low, high in zip(blocks, cuts, cuts[1:], strict=False):
            part = slice(low, high)
            if high > low:
                own = rows[part] - start
                open_rows[block][own] = False
                self.observer.answer_rows(block, high - low, y.shape[1])
                if not block.is_abandoned:
                    block.receiver.done(block, Done(own, steps[part], y[part]))
            start += len(block)

    def _records_of(self, model: Model) -> RecordRows:
        found = self._records.get(model)
        if found is None:
            layout = model.artifact.layout
            found = RecordRows(model.name, model.version, layout.row, layout.header)
            self._records[model] = found
        return found


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _bytes_of(y: Array) -> Array:
    """(n, T, ...) -> (n, bytes) uint8, little-endian, as a record keeps it."""
    little = np.ascontiguousarray(y.astype(y.dtype.newbyteorder("<"), copy=False))
    return little.reshape(len(y), -1).view(np.uint8)


def _of(blocks: Sequence[Block]) -> dict[str, dict[str, object]]:
    ids = [block.origin.request_id for block in blocks]
    return about(model=blocks[0].model.reference, request_ids=ids)
