"""Stores with sessions asleep in them, and an engine over each.

A session that has lived long is one whose record says so: the step is put there, as a restored
snapshot or an old session's record would. Its state is one that the model has reached by running,
so that no kernel meets zeros where it would meet none.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.artifact import Array
from service.catalog import Catalog
from service.engine import Engine
from service.job import Request
from service.model import Model
from service.session import LastReply, Record, SessionKey
from service.store import Commit, Outcome, Store
from service.store.disk.store import DiskStore
from service.wire import RowShape

IDLE_TIMEOUT_S = 86_400.0  # nobody expires while he is measured
PIECE = 256  # sessions put into a store at once
WARM_STEPS = 100  # that the common state has run
AWAKE = 64  # sessions of each age that run
MAX_BATCH, MAX_QUEUE, MAX_STEPS = 256, 4_096, 16_384  # the service's own


@dataclass(frozen=True)
class Given:
    """Rows that are an array already."""

    array: Array

    def decode(self, shape: RowShape) -> Array:
        return self.array


@dataclass(frozen=True)
class Seed:
    """What all sessions of one model begin from: its records differ in birth and step alone."""

    model: Model
    state: bytes
    x: Array  # (N, I) rows to be asked, one after another

    def record(self, number: int, step: int) -> Record:
        y = np.zeros([int(n) for n in self.model.artifact.manifest.ports.y.shape[2:]], np.float32)
        last = LastReply(step - 1, bytes(16), y.tobytes(), created=False)
        return Record(number, self.model.name, self.model.version, step, self.state, last)

    def request(self, key: SessionKey, turn: int) -> Request:
        """One step, another row at every turn."""
        at = turn % len(self.x)
        return Request(key, Given(self.x[at : at + 1]))


def make_seed(model: Model) -> Seed:
    width = int(model.artifact.manifest.ports.x.shape[2])
    x = np.random.default_rng(1).uniform(-1, 1, (WARM_STEPS, width))
    _, (state,), _ = model.run([model.encode(x)], [model.initial_state])
    return Seed(model, state, x)


def sleeper(number: int) -> SessionKey:
    return SessionKey("", f"sleeper-{number}")


def awake(age: int) -> list[SessionKey]:
    """Those of one age that run."""
    return [SessionKey("", f"of-{age}-{number}") for number in range(AWAKE)]


async def put_to_sleep(store: Store, seed: Seed, numbers: range) -> None:
    """Put `sleeper` sessions into a store, each one step old.

    Raises:
        SystemExit: the store does not take them.
    """
    for start in range(numbers.start, numbers.stop, PIECE):
        some = range(start, min(start + PIECE, numbers.stop))
        await put(store, [(sleeper(number), seed.record(number, 1)) for number in some])


async def put(store: Store, sessions: Sequence[tuple[SessionKey, Record]]) -> None:
    outcomes = await store.commit([Commit(key, None, record) for key, record in sessions])
    if not set(outcomes) <= {Outcome.DONE}:
        raise SystemExit(f"scaling: the store says {set(outcomes)}: is the disk full?")


@dataclass(eq=False)
class House:
    """An engine over a disk store in which so many sleep."""

    asleep: int
    store: DiskStore
    engine: Engine
    seed: Seed
    disk_bytes: float  # of each sleeper; what a store takes beside its sessions is in it
    memory_bytes: float  # of this process, the files that are mapped into it too
    turn: int = 0

    async def ask(self, keys: Sequence[SessionKey]) -> None:
        """One step of each session, all at once."""
        self.turn += 1
        predict, request = self.engine.predict, self.seed.request
        await asyncio.gather(*(predict(request(key, self.turn)) for key in keys))


@asynccontextmanager
async def house(folder: Path, seed: Seed, asleep: int, ages: Sequence[int]) -> AsyncIterator[House]:
    """One with `asleep` sleepers, and `AWAKE` sessions of each age; its folder is kept."""
    before = resident_bytes()
    room = int(asleep * 1.05) + AWAKE * len(ages) + 16
    store = DiskStore(folder, room, IDLE_TIMEOUT_S)
    await put_to_sleep(store, seed, range(asleep))
    memory = (resident_bytes() - before) / asleep
    disk = disk_bytes(folder) / asleep
    for age in ages:
        await put(store, [(key, seed.record(at, age)) for at, key in enumerate(awake(age))])
    engine = Engine(
        Catalog([seed.model]),
        store,
        max_batch=MAX_BATCH,
        max_queue=MAX_QUEUE,
        max_steps=MAX_STEPS,
    )
    engine.start()
    try:
        yield House(asleep, store, engine, seed, disk, memory)
    finally:
        await engine.close()


def disk_bytes(folder: Path) -> int:
    """Blocks of all of its files."""
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def resident_bytes() -> int:
    """Of this process, the mapped files too."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
