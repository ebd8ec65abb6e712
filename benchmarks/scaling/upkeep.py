"""What sleeping sessions cost a worker beside the steps: sweeps, counts, expiry, opening again.

Each figure is CPU time of the process. `longest` is the longest that the loop was held at once: so
long, at least, whoever asks for a step then waits. Python's garbage collection is not in it.
"""

import asyncio
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.scaling.sleepers import IDLE_TIMEOUT_S, Seed, put_to_sleep
from service.store.disk.machine import Machine, this_machine
from service.store.disk.store import DiskStore

T = TypeVar("T")
HOUR_S = 3_600.0


@dataclass(frozen=True)
class Upkeep:
    """Of one store in which so many sleep."""

    asleep: int
    fill_us: float  # to put one to sleep, read and commit, in pieces
    sweep_ms: float  # in which none has expired, but one might have
    expiry_us: float  # of one of them, when the time of all is up together
    expiry_longest_ms: float
    close_ms: float  # cleanly, with all that is to be on the disk
    open_ms: float  # again
    repair_ms: float  # in addition, when a writer was killed


class Clock:
    """The machine's, which may be put forward."""

    def __init__(self) -> None:
        self._machine = this_machine()
        self.ahead_s = 0.0

    def machine(self) -> Machine:
        one = self._machine
        return Machine(one.boot, lambda: one.since_boot() + self.ahead_s, one.wall)


async def measure_upkeep(folder: Path, seed: Seed, asleep: int) -> Upkeep:
    """Of a store of its own in `folder`."""
    clock = Clock()

    def opened() -> DiskStore:
        return DiskStore(folder, asleep, IDLE_TIMEOUT_S, machine=clock.machine())

    store = opened()
    await put_to_sleep(store, seed, range(1))
    clock.ahead_s = HOUR_S  # it is due an hour before all others
    begun = time.process_time()
    await put_to_sleep(store, seed, range(1, asleep))
    fill_s = (time.process_time() - begun) / max(asleep - 1, 1)
    begun = time.process_time()
    await store.close()
    close_s = time.process_time() - begun
    store, open_s = _timed(opened)
    _, repair_s = _timed(store._directory.repair)
    clock.ahead_s = IDLE_TIMEOUT_S + HOUR_S / 2
    begun = time.process_time()
    swept = len(await store.sweep())
    sweep_s = time.process_time() - begun
    clock.ahead_s = 2 * IDLE_TIMEOUT_S
    expiry_s, longest_s, expired = await _expire(store)
    await store.close()
    if swept + expired != asleep:
        raise SystemExit(f"scaling: {swept + expired} of {asleep} sessions expired")
    return Upkeep(
        asleep,
        fill_s * 1e6,
        sweep_s * 1e3,
        expiry_s / max(expired, 1) * 1e6,
        longest_s * 1e3,
        close_s * 1e3,
        open_s * 1e3,
        repair_s * 1e3,
    )


async def _expire(store: DiskStore) -> tuple[float, float, int]:
    """CPU time of all sweeps, the longest of one turn of the loop, and how many they told of."""
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        while True:
            before = time.process_time()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.process_time() - before)

    gc.collect()
    gc.disable()  # a full collection of all that a service has imported is 30 to 130 ms by itself
    watching = asyncio.ensure_future(watch())
    await asyncio.sleep(0)
    begun, expired = time.process_time(), 0
    while found := await store.sweep():
        expired += len(found)
        await asyncio.sleep(0)
    took_s = time.process_time() - begun
    gc.enable()
    watching.cancel()
    return took_s, longest_s, expired


def _timed(what: Callable[[], T]) -> tuple[T, float]:
    begun = time.process_time()
    result = what()
    return result, time.process_time() - begun
