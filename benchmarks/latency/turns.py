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
from typing import TypeVar

import numpy as np

Array = np.ndarray
Call = Callable[[], object]
T = TypeVar("T")
WARM_UP_CALLS = 5  # TorchScript optimises a module in its first calls
MAX_CALLS = 2_000  # of a slice


@dataclass(frozen=True)
class Times:
    """Of one contestant, in microseconds a call."""

    wall_us: Array  # (calls,), all rounds
    slice_us: Array  # (rounds,), wall-clock: the mean of a slice
    cpu_us: Array  # (rounds,): the mean of a slice


def take_turns(
    cells: Sequence[Mapping[str, Call]],
    rounds: int,
    slice_s: float,
    tell: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Times]]:
    """Time each for `rounds` slices of about `slice_s` seconds, one call at least.

    Args:
        cells: name -> call; those of one cell follow each other, and every round has all cells, so
            that cells can be compared too.
        tell: told of each round.
    """
    calls = [{name: _calls(call, slice_s) for name, call in cell.items()} for cell in cells]
    slices: list[dict[str, list[tuple[list[float], float]]]]
    slices = [{name: [] for name in cell} for cell in cells]
    for k in range(rounds):
        tell(f"round {k + 1} of {rounds}")
        for place in _rotated(range(len(cells)), k):
            for name in _rotated(list(cells[place]), k):
                found = _slice(cells[place][name], calls[place][name])
                slices[place][name].append(found)
    return [{name: _times(found) for name, found in cell.items()} for cell in slices]


def _rotated(items: Sequence[T], by: int) -> list[T]:
    k = by % max(len(items), 1)
    return [*items[k:], *items[:k]]


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
