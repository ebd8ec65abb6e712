"""How much each output moves: the scale of which errors are shares."""

import numpy as np

Array = np.ndarray
ROUNDING = 1e-6  # of an output's size: a deviation below it is float32's rounding, not movement
CONSTANT_SHARE = 0.1  # of its size counts as the spread of an output that does not move
TINY = float(np.finfo(np.float32).tiny)


def spread_of(y: Array) -> Array:
    """The standard deviation over time of each output, (O,) float64, never zero.

    An output that is constant to rounding has none; a tenth of its size stands in for it, so that
    what is measured against it is neither infinite nor hidden.

    Args:
        y: (B, T, ...) of O numbers a step, any unit.
    """
    flat = flat_outputs(y).reshape(-1, outputs_of(y))
    deviation = flat.std(axis=0)
    size = np.abs(flat).max(axis=0)
    constant = deviation <= ROUNDING * size
    return np.asarray(np.maximum(np.where(constant, CONSTANT_SHARE * size, deviation), TINY))


def outputs_of(y: Array) -> int:
    """How many numbers y (B, T, ...) has a step."""
    return int(np.prod(y.shape[2:]))


def flat_outputs(y: Array) -> Array:
    """(B, T, ...) -> (B, T, O) float64."""
    return y.reshape(*y.shape[:2], -1).astype(np.float64)
