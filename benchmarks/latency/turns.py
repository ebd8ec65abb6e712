"""Contestants in turns, so that a moment in which the machine is slow hits all of them.

Rules
- Round after round each contestant runs for one slice of calls, every round in another order.
- Of each call the wall-clock time is kept, of each slice the CPU time of all the process's threads.
- Before that each is called until it has had its share of warm-up: engines optimise and allocate in
  their first calls, of each shape.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Call = Callable[[], object]
WARM_UP_CALLS = 5  # TorchScript optimises a module in its first calls
MAX_CALLS = 2_000  # of a slice


@dataclass(frozen=True)
class Times:
    """Of one contestant, in microseconds a call."""

    wall_us: Array  # (calls,), all rounds
    slice_us: Array  # (rounds,), wall-clock: the mean of a slice
    cpu_us: Array  # (rounds,): the mean of a slice


def take_turns(contestants: Mapping[str, Call], rounds: int, slice_s: float) -> dict[str, Times]:
    """Time each for `rounds` slices of about `slice_s` seconds, one call at least."""
    names = list(contestants)
    calls = {name: _calls(contestants[name], slice_s) for name in names}
    slices: dict[str, list[tuple[list[float], float]]] = {name: [] for name in names}
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            slices[name].append(_slice(contestants[name], calls[name]))
    return {name: _times(found) for name, found in slices.items()}


def _calls(call: Call, slice_s: float) -> int:
    """How many make a slice; the first of them are the warm-up."""
    spent = []
    for _ in range(WARM_UP_CALLS):
        begun = time.perf_counter()
        call()
        spent.append(time.perf_counter() - begun)
    return min(MAX_CALLS, max(1, round(slice_s / max(min(spent), 1e-7))))


def _slice(call: Call, calls: int) -> tuple[list[float], float]:
    """Seconds of wall-clock time of each call, and of CPU time of all."""
    clock = time.perf_counter
    walls = []
    cpu = time.process_time()
    for _ in range(calls):
        begun = clock()
        call()
        walls.append(clock() - begun)
    return walls, time.process_time() - cpu


def _times(slices: Sequence[tuple[list[float], float]]) -> Times:
    walls = [np.array(wall) * 1e6 for wall, _ in slices]
    return Times(
        np.concatenate(walls),
        np.array([wall.mean() for wall in walls]),
        np.array([cpu / len(wall) * 1e6 for wall, cpu in slices]),
    )
