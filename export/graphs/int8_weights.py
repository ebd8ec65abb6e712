"""Weights in int8: symmetric, one scale an output, by our own arithmetic.

    scale = float32(peak / 127)          of each output, peak its greatest magnitude
    level = rint(float32(weight / scale))    half to even, -127..127

Convention
- Levels are int8 with zero point 0. On x86 without VNNI, kernels of uint8 x int8 add pairs of
  products in saturating 16 bits, and were measured to be off by 0.1: products take the levels of
  `quantize_pairs`, which cannot saturate.
- 127 levels on either side; -128 is never used. ONNX Runtime's `quantize_dynamic` does the same and
  stores the same levels and scales; with `reduce_range` it takes 64 (7 bits and the sign). Torch's
  observers divide by 127.5, so that a positive peak is clipped by half a level. Torch multiplies by
  1 / scale, which seldom moves a weight that lies halfway between two levels to the other one.
- An output whose scale would be less than float32's least normal number (its weights are zero, or
  below 1.5e-36) has level 0 and scale 1. Torch takes no scale below 1.2e-7: there, weights below
  6e-8 are lost.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
WEIGHT_LEVELS = 127
PAIR_LEVELS = 128  # 255 * 128 = 32640, below 2 ** 15
ENOUGH = 0.995  # of the mean square error; to take more away shows in the time, not in the drift
MOST_RANK = 8  # of the part in float, up to 512 inputs
INPUTS_OF_RANK = 64  # above, so many inputs for one more
MOST_OF_INPUTS = 4  # a rank above a quarter of the inputs is no small part any more
FLOOR = 1e-3  # of the mean squared gradient: what was not seen to count may count that much
WORTH = 0.55  # of the mean square error, else the part in float is not worth its time
NOTHING = 1e-12  # of the greatest eigenvalue: a direction that the weights do not have


@dataclass(frozen=True)
class Int8Matrix:
    """value @ (levels * scales), plus value @ down @ up in float.

    levels (n_in, n_out) int8, scales (n_out,) float32, down (n_in, k) and up (k, n_out) float32;
    k is 0 where all is int8.
    """

    levels: Array
    scales: Array
    down: Array
    up: Array

    @property
    def rank(self) -> int:
        return len(self.up)


def quantize_columns(matrix: Array) -> tuple[Array, Array]:
    """Symmetric int8 with one scale per output.

    Args:
        matrix: (n_out, n_in) finite, float64 or float32. Not changed.
    Returns:
        levels (n_in, n_out) int8, and scales (n_out,) float32.
    """
    exact = matrix.astype(np.float64)
    scale = np.abs(exact).max(axis=1) / WEIGHT_LEVELS
    lost = scale < np.finfo(np.float32).tiny
    scale = np.where(lost, 1.0, scale).astype(np.float32)
    quotient = (exact / scale[:, None].astype(np.float64)).astype(np.float32)
    levels = np.where(lost[:, None], 0.0, np.rint(quotient))
    return np.ascontiguousarray(levels.T.astype(np.int8)), scale


def quantize_pairs(matrix: Array) -> tuple[Array, Array]:
    """As `quantize_columns`, by scales that no kernel's 16-bit sums of pairs can saturate.

    A uint8 x int8 kernel without VNNI adds the products of inputs 2k and 2k + 1 in 16 bits. At
    inputs of up to 255 that is exact if weights of one sign are at most 128 levels together.

    Returns:
        levels (n_in, n_out) int8, and scales (n_out,) float32.
    """
    even = np.concatenate([matrix, np.zeros((len(matrix), matrix.shape[1] % 2))], axis=1)
    first, second = even[:, 0::2], even[:, 1::2]
    sums = np.where(first * second > 0, np.abs(first + second), 0.0).max(axis=1, initial=0.0)
    scale = np.maximum(np.abs(matrix).max(axis=1) / WEIGHT_LEVELS, sums / PAIR_LEVELS)
    scale = np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(np.float32)
    levels = np.rint(matrix / np.nextafter(scale, np.float32(np.inf))[:, None].astype(np.float64))
    return np.ascontiguousarray(levels.T.astype(np.int8)), scale


def quantize(matrix: Array, gradients: Array | None = None) -> Int8Matrix:
    """Weights in int8, and in float a part of low rank that keeps exact what counts most.

    An error e of the inputs, which are rounded too, is an error W e of the outputs, and moves what
    comes of them by g . W e, g being a gradient. The part of W in float is the one of its rank that
    makes the mean square of g . W e least when it is taken out: with G the second moments of the
    gradients, W v v' over the first eigenvectors v of W' G W. It also takes back what rounding the
    rest of W did in these directions. Its rank is the least that takes `ENOUGH` away, if that is
    not too great.

    Where y feels so many directions that these would take less than `WORTH` of the error away, as
    where y is h itself and no weight was trained, there is none: it takes 8 % of a step's time.

    Low-rank float parts beside quantized weights: Yao et al. 2023 (ZeroQuant-V2), Li et al. 2024
    (SVDQuant), of the weights' own singular vectors. Those leave two to three times as much drift
    here: what counts in a recurrence is what it goes on carrying.

    Args:
        matrix: (n_out, n_in) finite. Not changed.
        gradients: (m, n_out) of what is computed at last, with respect to the outputs, at many
            inputs; None: there are none, and all is int8.
    """
    matrix = matrix.astype(np.float64)
    outputs, inputs = matrix.shape
    most = min(max(MOST_RANK, inputs // INPUTS_OF_RANK), inputs // MOST_OF_INPUTS)
    nothing = np.zeros((inputs, 0), np.float32), np.zeros((0, outputs), np.float32)
    if gradients is None or not gradients.any() or most == 0:
        return Int8Matrix(*quantize_pairs(matrix), *nothing)
    floor = FLOOR * float((gradients**2).sum()) / outputs

    def weighed(a: Array, b: Array) -> Array:  # a' G b
        return np.asarray((gradients @ a).T @ (gradients @ b) + floor * a.T @ b)

    values, vectors = np.linalg.eigh(weighed(matrix, matrix))  # ascending
    taken = values[::-1].cumsum()  # by the first k directions
    most = min(most, int((values > NOTHING * values[-1]).sum()))
    if most == 0 or taken[most - 1] < WORTH * taken[-1]:
        return Int8Matrix(*quantize_pairs(matrix), *nothing)
    rank = min(most, 1 + int(np.searchsorted(taken, ENOUGH * taken[-1])))
    first = vectors[:, : -rank - 1 : -1]  # (n_in, k)
    up = matrix @ first  # (n_out, k)
    levels, scales = quantize_pairs(matrix - up @ first.T)
    left = matrix - levels.T.astype(np.float64) * scales[:, None]
    down = np.linalg.solve(weighed(up, up), weighed(up, left))  # (k, n_in)
    return Int8Matrix(
        levels,
        scales,
        np.ascontiguousarray(down.T.astype(np.float32)),
        np.ascontiguousarray(up.T.astype(np.float32)),
    )
