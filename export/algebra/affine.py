"""Affine maps of roots: what a value is when its spelling is taken away, and what is done with it.

All matrices are float64. None of these functions changes what it is given.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
SAME = 1e-12  # coefficients were read off in float64


@dataclass(frozen=True)
class Affine:
    """value (B, n) = sum over roots of root @ matrix.T, plus bias."""

    blocks: Mapping[str, Array]  # root -> (n, root size) float64, none of them all zero
    bias: Array  # (n,) float64

    @property
    def size(self) -> int:
        return len(self.bias)

    def __call__(self, roots: Mapping[str, Array]) -> Array:
        batch = len(next(iter(roots.values())))
        value = np.tile(self.bias, (batch, 1))
        for name, matrix in self.blocks.items():
            value = value + _product(roots[name], matrix)
        return value


def _product(rows: Array, matrix: Array) -> Array:
    """rows @ matrix.T, in which an infinite value is not seen through a zero, as in a slice."""
    if np.isfinite(rows).all():
        return np.asarray(rows @ matrix.T)
    with np.errstate(invalid="ignore"):
        return np.stack([np.where(matrix != 0, matrix * row, 0).sum(axis=1) for row in rows])


def rows_of(affine: Affine, rows: Array) -> Affine:
    """Some rows, without the roots that they do not look at."""
    return Affine(
        {s: m[rows] for s, m in affine.blocks.items() if m[rows].any()}, affine.bias[rows]
    )


def scaled(affine: Affine, factor: float) -> Affine:
    return Affine({s: factor * m for s, m in affine.blocks.items()}, factor * affine.bias)


def equal(a: Affine, b: Affine) -> bool:
    return set(a.blocks) == set(b.blocks) and all(
        np.allclose(x, y, rtol=0, atol=SAME)
        for x, y in [(a.bias, b.bias), *((a.blocks[s], b.blocks[s]) for s in a.blocks)]
    )


def stack(parts: list[Affine]) -> Affine:
    """Their rows below each other."""
    sources = dict.fromkeys(source for part in parts for source in part.blocks)
    blocks = {}
    for source in sources:
        width = next(p.blocks[source].shape[1] for p in parts if source in p.blocks)
        rows = [p.blocks.get(source, np.zeros((p.size, width))) for p in parts]
        blocks[source] = np.concatenate(rows)
    return Affine(blocks, np.concatenate([part.bias for part in parts]))


def take_out(affine: Affine, value: Affine, partial: Collection[str]) -> tuple[Array, Affine]:
    """M and rest of `affine` = M @ value + rest; M is zeros where it is not there whole.

    `value` (H) takes one element of each root for each unit. Of the roots in `partial`, which may
    be part of it, `affine` may take more besides.
    """
    nothing = np.zeros((affine.size, value.size)), affine
    names = list(value.blocks)[::-1]
    last = names[0] if names else ""
    if last not in affine.blocks:
        return nothing
    blocks = dict(affine.blocks)
    through = np.zeros((affine.size, value.size))
    for name in names:
        index = np.abs(value.blocks[name]).argmax(axis=1)
        factor = value.blocks[name][np.arange(value.size), index]
        width = value.blocks[name].shape[1]
        matrix = blocks.get(name, np.zeros((affine.size, width))).copy()
        if name == last:
            through = matrix[:, index] / factor
        left = matrix[:, index] - through * factor
        left[np.abs(left) <= SAME * max(1.0, np.abs(through).max())] = 0
        if left.any() and name not in partial:
            return nothing
        matrix[:, index] = left
        blocks[name] = matrix
    blocks = {name: matrix for name, matrix in blocks.items() if matrix.any()}
    return through, Affine(blocks, affine.bias - through @ value.bias)
