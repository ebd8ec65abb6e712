"""Is a row's result its own? Measured, bit for bit, for every variant.

Rules
- What a row gives alone, one step a call, is what counts. The same bits in every company, at any
  place and in any chunks: the variant is isolated. Else the runtime will run it one row and one
  step at a time, and then it is.
- The variant is run raw, as one batch: what it would do if the runtime did not keep its rows apart.
- Where bits differ, it is measured how far the row moved. A batch that the engine refuses because
  of one row, and NaN, count as infinitely far.

How it works: each trial draws a row of the example, a state and a length, and puts the row into
every kind of company (`COMPANIES`) in turn.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from service.layout import State
from service.runtime import Runtime

Array = np.ndarray
TRIALS = 12  # each in every company; a test marked slow runs thousands
STEPS = 8
MAX_BATCH = 64
SCALES = {"1e4": 1e4, "1e30": 1e30, "denormal": 1e-40}  # of what hostile neighbours send
COMPANIES: Mapping[str, str] = {  # kind -> who is beside the row, as the report says it
    "chunks": "alone, in other chunks",
    "places": "copies of itself, at every place",
    "calm": "rows of the example",
    "1e4": "rows that send 1e4",
    "1e30": "rows that send 1e30",
    "denormal": "rows that send 1e-40",
    "mixed": "all of these",
}


@dataclass(frozen=True)
class Found:
    """What one kind of company did to rows."""

    company: str  # of COMPANIES
    trials: int
    moved: int  # trials in which a bit changed
    y: float  # the farthest that a y moved, in the model's units
    state: float  # the farthest that a state moved


@dataclass(frozen=True)
class Isolation:
    """What company did to one variant's rows, by kind of company."""

    found: tuple[Found, ...]

    @property
    def isolated(self) -> bool:
        """Not one bit of one trial changed."""
        return all(one.moved == 0 for one in self.found)

    @property
    def worst(self) -> Found:
        """The company that moved a y farthest."""
        return max(self.found, key=lambda one: (one.y, one.state, one.moved))


@dataclass(frozen=True)
class _Run:
    """Rows in one call: x (B, T, ...), their states, the steps of each, and where the row is."""

    x: Array
    state: State
    lengths: Array
    places: Array


@dataclass(frozen=True)
class _Row:
    """One row, x (1, T, ...), and what it gives alone, one step a call."""

    x: Array
    state: State
    y: Array  # (1, T, ...)
    final: State


def measure_isolation(
    runtime: Runtime, x: Array, initial: State, trials: int = TRIALS, seed: int = 0
) -> Isolation:
    """Put rows of the example into every kind of company.

    Args:
        runtime: loaded as if the variant were isolated.
        x: (N, T, ...) the example in the model's units.
        initial: the state of one fresh session, name -> (1, ...).
    """
    crowds = _Crowds(runtime, x, initial, np.random.default_rng(seed))
    moves: dict[str, list[tuple[float, float] | None]] = {kind: [] for kind in crowds.kinds}
    for _ in range(trials):
        row = crowds.draw_row()
        for kind, found in moves.items():
            found.append(_move(runtime, row, crowds.around(row, kind)))
    return Isolation(tuple(_found(kind, found) for kind, found in moves.items()))


def _found(company: str, moves: list[tuple[float, float] | None]) -> Found:
    moved = [move for move in moves if move is not None]
    y, state = (max((move[k] for move in moved), default=0.0) for k in (0, 1))
    return Found(company, len(moves), len(moved), y, state)


def _move(runtime: Runtime, row: _Row, run: _Run) -> tuple[float, float] | None:
    """How far y and state of the row are from what they are alone; None: the same bits."""
    try:
        y, new = runtime.run(run.x, run.state, run.lengths)
    except RuntimeError:  # torch's int8 products refuse the whole batch for one row that is NaN
        return float("inf"), float("inf")
    steps = row.x.shape[1]
    pairs = [(y[run.places, :steps], row.y)]
    pairs += [(new[name][run.places], value) for name, value in row.final.items()]
    same = (alone.tobytes() * len(run.places) == found.tobytes() for found, alone in pairs)
    if all(same):
        return None
    far = [_distance(found, alone) for found, alone in pairs]
    return far[0], max(far[1:], default=0.0)


def _distance(found: Array, alone: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.abs(found.astype(np.float64) - alone)
    return float(np.nan_to_num(far, nan=np.inf, posinf=np.inf).max(initial=0))


class _Crowds:
    """Draws rows, and company for them."""

    def __init__(self, runtime: Runtime, x: Array, initial: State, rng: np.random.Generator):
        self._runtime, self._x, self._initial, self._rng = runtime, x, initial, rng
        self._wide = {
            s.name for s in runtime.ports.states if s.bound is None and s.dtype == "float32"
        }

    @property
    def kinds(self) -> list[str]:
        """Those of COMPANIES that there are: ids and bounded states cannot be hostile."""
        tame = self._x.dtype.kind == "i" and not self._wide
        return [kind for kind in COMPANIES if not (tame and kind in (*SCALES, "mixed"))]

    def draw_row(self) -> _Row:
        """A piece of the example from a fresh state, or from a random one."""
        rng, x = self._rng, self._x
        steps = int(rng.integers(1, min(STEPS, x.shape[1]) + 1))
        start = int(rng.integers(0, x.shape[1] - steps + 1))
        row = x[rng.integers(len(x)), start : start + steps][None]
        state = self._initial if rng.integers(2) else self._states(np.ones(1))
        ys, final = [], state
        for t in range(steps):
            y, final = self._runtime.run(np.ascontiguousarray(row[:, t : t + 1]), final)
            ys.append(y)
        return _Row(row, state, np.concatenate(ys, axis=1), final)

    def around(self, row: _Row, kind: str) -> _Run:
        """A batch with the row in it, padded on the right; the rows' lengths differ."""
        rng, steps = self._rng, row.x.shape[1]
        batch = 1 if kind == "chunks" else int(rng.integers(2, MAX_BATCH + 1))
        if kind in ("chunks", "places"):
            places = np.arange(batch)
            x = np.repeat(row.x, batch, axis=0)
            state = {name: np.repeat(value, batch, axis=0) for name, value in row.state.items()}
        else:
            places = rng.integers(batch, size=1)
            scales = np.ones(batch)
            if kind == "mixed":
                scales = rng.choice([1.0, *SCALES.values()], batch)
            elif kind != "calm":
                scales = np.full(batch, SCALES[kind])
            x, state = self._neighbours(row, scales), self._states(scales)
            x[places] = row.x
            for name, value in row.state.items():
                state[name][places] = value
        lengths = rng.integers(1, 2 * steps + 1, batch)
        lengths[places] = steps
        return _Run(np.concatenate([x, np.zeros_like(x)], axis=1), state, lengths, places)

    def _neighbours(self, row: _Row, scales: Array) -> Array:
        """(B, T, ...): pieces of the example where the scale is 1, else noise of that scale."""
        rng, shape = self._rng, (len(scales), *row.x.shape[1:])
        rows = rng.integers(len(self._x), size=shape[0])[:, None]
        starts = rng.integers(0, self._x.shape[1] - shape[1] + 1, shape[0])[:, None]
        calm = self._x[rows, starts + np.arange(shape[1])]
        if row.x.dtype.kind == "i":
            return np.asarray(calm)  # ids that the model knows; the hostile are so by their states
        by_row = scales.reshape(-1, *[1] * (row.x.ndim - 1))
        noise = rng.standard_normal(shape) * by_row
        return np.asarray(np.where(by_row == 1, calm, noise), row.x.dtype)

    def _states(self, scales: Array) -> State:
        """Random states; those that nothing bounds are of their row's scale."""

        def draw(name: str, like: Array) -> Array:
            value = self._rng.uniform(-1, 1, (len(scales), *like.shape[1:]))
            if name in self._wide:
                value *= scales.reshape(-1, *[1] * (like.ndim - 1))
            if like.dtype.kind == "i":
                return np.zeros(value.shape, like.dtype)  # an index that the model knows
            return value.astype(like.dtype)

        return {name: draw(name, like) for name, like in self._initial.items()}
