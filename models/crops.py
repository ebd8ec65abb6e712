"""Pieces of a sequence: where they start is random in training and fixed in scoring."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.errors import SeriesError

Values = TypeVar("Values", NDArray[np.float32], NDArray[np.int64])


def random_crops(values: Values, steps: int, count: int, rng: np.random.Generator) -> Values:
    """``count`` subsequences of (T, I) values that start anywhere: (count, steps, I)."""
    starts = rng.integers(0, _last_start(values, steps) + 1, size=count)
    return _crops(values, steps, starts)


def evenly_spaced(values: Values, steps: int, count: int) -> Values:
    """At most ``count`` subsequences of (T, I) values, from the first to the last: (N, steps, I).

    Fewer where the values are too short for so many different starts.
    """
    last = _last_start(values, steps)
    starts = np.unique(np.linspace(0, last, count).round().astype(np.int64))
    return _crops(values, steps, starts)


def _crops(values: Values, steps: int, starts: NDArray[np.int64]) -> Values:
    crops: Values = values[starts[:, None] + np.arange(steps)]
    return crops


def _last_start(values: Values, steps: int) -> int:
    if len(values) < steps:
        raise SeriesError(
            f"a split has {len(values)} steps, expected at least {steps} (warmup and rollout); "
            "cut the series elsewhere or take shorter crops"
        )
    return len(values) - steps
