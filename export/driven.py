"""Inputs that are driven from outside: the example as it is, with shocks in it, or falling silent.

Rules
- The same example gives the same inputs: places and signs come from a fixed seed.
- A number is shocked by `SHOCK_STD` standard deviations of the example. A column of whole numbers
  (a mask, a category, a count) goes to the least or greatest value that was seen, and ids to the
  rarest: a module may look them up in a table, and take no others.
- Silence is zero in raw units, or the value nearest to it that the example holds: of a column that
  never comes near zero, zero is no silence but a broken sensor. Of ids it is the most frequent.
"""

from dataclasses import dataclass

import numpy as np

from service.pipeline import Pipeline

Array = np.ndarray
SHOCK_STD = 10.0  # far beyond what training saw, and as a sensor's spike or a wrong unit gives it
SHOCKS = 8  # in a case: what follows each is long enough to see whether it is forgotten
STEPS_PER_SHOCK = 16  # at least
WARM_STEPS = 200  # of real input before it falls silent
WHOLE = 1e-4  # of a value: what its scaling to and fro may have rounded off a whole number


@dataclass(frozen=True)
class Shocked:
    """x (1, T, ...) with outliers at `places`."""

    x: Array
    places: tuple[int, ...]


def shocked(x: Array, pipeline: Pipeline, example: Array) -> Shocked:
    """A row with single steps thrown far out, then real input again.

    Args:
        x: (1, T, ...) real input, in the model's units. Not changed.
        example: (N, T', ...) all that was seen of it.
    """
    rng = np.random.default_rng(1)
    steps = x.shape[1]
    count = max(1, min(SHOCKS, steps // STEPS_PER_SHOCK))
    length = steps // (count + 1)  # the first stretch has none: what is before a shock is seen too
    offsets = rng.integers(0, max(1, length // 2), count)
    places = tuple(int(length * (k + 1) + offset) for k, offset in enumerate(offsets))
    x = x.copy()
    for place, sign in zip(places, rng.choice([-1.0, 1.0], count), strict=True):
        x[:, place] = _outlier(example, pipeline, sign)
    return Shocked(x, places)


def silenced(x: Array, pipeline: Pipeline, example: Array) -> tuple[Array, int]:
    """A row of real input that falls silent, and the step at which it does.

    Args:
        x: (1, T, ...) real input, in the model's units. Not changed.
        example: (N, T', ...) all that was seen of it.
    """
    warm = min(WARM_STEPS, x.shape[1] // 4)
    x = x.copy()
    x[:, warm:] = _silence(example, pipeline)
    return x, warm


def _outlier(example: Array, pipeline: Pipeline, sign: float) -> Array:
    """(...) one step."""
    if _is_tokens(example, pipeline):
        tokens, counts = _tokens(example)
        return np.asarray(tokens[counts.argmin()])
    values = _values(example)
    extreme = values.max(axis=0) if sign > 0 else values.min(axis=0)
    deviation = values.std(axis=0)
    thrown = values.mean(axis=0) + sign * SHOCK_STD * deviation
    chosen = np.where(_is_whole(values, pipeline), extreme, thrown)
    return np.asarray(chosen.reshape(example.shape[2:]))


def _silence(example: Array, pipeline: Pipeline) -> Array:
    """(...) one step."""
    if _is_tokens(example, pipeline):
        tokens, counts = _tokens(example)
        return np.asarray(tokens[counts.argmax()])
    values = _values(example)
    zero = pipeline.encode(np.zeros(example.shape[2:])).reshape(-1)
    nearest = values[np.abs(values - zero).argmin(axis=0), np.arange(values.shape[1])]
    clipped = np.clip(zero, values.min(axis=0), values.max(axis=0))
    chosen = np.where(_is_whole(values, pipeline), nearest, clipped)
    return np.asarray(chosen.reshape(example.shape[2:]))


def _is_tokens(example: Array, pipeline: Pipeline) -> bool:
    return example.dtype.kind == "i" or pipeline.vocabulary is not None


def _tokens(example: Array) -> tuple[Array, Array]:
    """Each token that was seen, as an id or a one-hot row, and how often."""
    tail = example.shape[2:]
    tokens, counts = np.unique(example.reshape(-1, *tail), axis=0, return_counts=True)
    return tokens, counts


def _values(example: Array) -> Array:
    """(steps, features) float64."""
    return example.reshape(-1, int(np.prod(example.shape[2:]))).astype(np.float64)


def _is_whole(values: Array, pipeline: Pipeline) -> Array:
    """(features,) bool: every value is a whole number, in raw units."""
    raw = values
    if pipeline.x is not None:
        width = len(pipeline.x.mean)
        scaled = values.reshape(len(values), -1, width) * pipeline.x.std + pipeline.x.mean
        raw = scaled.reshape(values.shape)
    return np.asarray((np.abs(raw - np.rint(raw)) <= WHOLE * np.maximum(1, np.abs(raw))).all(0))
