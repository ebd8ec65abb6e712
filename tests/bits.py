"""Equality to the last bit: -0.0 is not 0.0, and a NaN is itself."""

import numpy as np

Array = np.ndarray


def same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()
