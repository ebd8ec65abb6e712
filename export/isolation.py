"""Is a row's result its own? Measured, bit for bit, for every variant.

A row is run alone and in one step a call; then at any place in a batch, beside hostile neighbours,
in whole chunks, with padding after it. The same bits every time: the variant is isolated. Else the
runtime will run it one row and one step at a time, and then it is.
"""

import numpy as np

from service.layout import State
from service.runtime import Runtime

Array = np.ndarray
TRIALS = 40
STEPS = 8
MAX_BATCH = 64
HOSTILE = (1.0, 1e4, 1e30, 1e-40)  # neighbours' scale; the last is denormal


def is_isolated(runtime: Runtime, x: Array, initial: State) -> bool:
    """Run `runtime` (loaded as if it were isolated) over random batches of the example.

    Args:
        x: (N, T, ...) the example in the model's units.
        initial: the state of one fresh session, name -> (1, ...).
    """
    rng = np.random.default_rng(0)
    return all(_trial(runtime, x, initial, rng) for _ in range(TRIALS))


def _trial(runtime: Runtime, x: Array, initial: State, rng: np.random.Generator) -> bool:
    steps = int(rng.integers(1, min(STEPS, x.shape[1]) + 1))
    start = int(rng.integers(0, x.shape[1] - steps + 1))
    row = x[rng.integers(len(x)), start : start + steps][None]
    state = {
        name: rng.uniform(-1, 1, value.shape).astype(value.dtype) for name, value in initial.items()
    }
    alone, alone_state = _step_by_step(runtime, row, state)
    batch = int(rng.integers(2, MAX_BATCH + 1))
    place = int(rng.integers(batch))
    crowd = _crowd(row, batch, rng)
    crowd[place] = row[0]
    crowd_state = {
        name: rng.uniform(-1, 1, (batch, *value.shape[1:])).astype(value.dtype)
        for name, value in state.items()
    }
    for name, value in state.items():
        crowd_state[name][place] = value[0]
    padded = np.concatenate([crowd, np.zeros_like(crowd)], axis=1)
    lengths = rng.integers(1, 2 * steps + 1, batch)
    lengths[place] = steps
    try:
        y, new = runtime.run(padded, crowd_state, lengths)
    except RuntimeError:  # torch's int8 products refuse the whole batch for one row that is NaN
        return False
    same = y[place, :steps].tobytes() == alone[0].tobytes()
    return same and all(new[n][place].tobytes() == alone_state[n][0].tobytes() for n in new)


def _crowd(row: Array, batch: int, rng: np.random.Generator) -> Array:
    shape = (batch, *row.shape[1:])
    if row.dtype.kind == "i":
        return rng.choice(row.ravel(), shape)  # ids that the model knows
    scale = rng.choice(HOSTILE, batch).reshape(-1, *[1] * (row.ndim - 1))
    return np.asarray(rng.standard_normal(shape) * scale, row.dtype)


def _step_by_step(runtime: Runtime, row: Array, state: State) -> tuple[Array, State]:
    ys = []
    for t in range(row.shape[1]):
        y, state = runtime.run(np.ascontiguousarray(row[:, t : t + 1]), state)
        ys.append(y)
    return np.concatenate(ys, axis=1), state
