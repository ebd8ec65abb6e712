"""Contestants in turns: what any of them is slowed by slows all, so that their ratios hold.

A slice of calls of one, then of the next, round after round; each round in another order, since
who comes after whom shows in the caches. A slice begins with calls that do not count: they fetch
what the others' slices drove out of the caches, which a service that does one thing has there.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
UNCOUNTED = 2  # calls at the start of a slice; the first takes up to twice the time, the third none
MIN_ROUNDS, MAX_ROUNDS = 7, 25


def take_turns(calls: Sequence[Callable[[], object]], seconds: float) -> Array:
    """Seconds of the thread's CPU time that a call takes, (rounds, contestants).

    Args:
        seconds: what all of it may take, about; calls that are slow take longer.
    """
    singles = [_seconds(call, 1) for call in calls]
    shares = seconds / len(calls)
    slowest = max(singles) * (1 + UNCOUNTED)
    rounds = int(np.clip(shares / slowest, MIN_ROUNDS, MAX_ROUNDS))
    counts = [max(1, int(shares / rounds / single) - UNCOUNTED) for single in singles]
    rng = np.random.default_rng(0)
    times = np.empty((rounds, len(calls)))
    for k in range(rounds):
        for j in rng.permutation(len(calls)).tolist():
            times[k, j] = _seconds(calls[j], counts[j])
    return times


def _seconds(call: Callable[[], object], count: int) -> float:
    for _ in range(UNCOUNTED):
        call()
    start = time.thread_time()
    for _ in range(count):
        call()
    return max(time.thread_time() - start, 1e-9) / count
