"""An affine map as its parts: rows that look at the same sources, and what each takes of them.

Most affine maps in a cell are no products at all: a gate picked out of a state, layers stacked
into one port, 1 - z. Written as matrices they would cost a product each, and int8 would blur what
is exact; so a part that only picks is told from one that mixes.
"""

from dataclasses import dataclass

import numpy as np

from export.algebra.affine import Affine

Array = np.ndarray
MAX_GROUPS = 16  # a map more scattered than that is a matrix; so is one with constant rows


@dataclass(frozen=True)
class Term:
    """What one group of rows takes of one source: its elements, signed, or a product."""

    source: str
    matrix: Array | None  # (n, size) float64; None: picked
    start: int = 0  # picked: source[:, start:stop]
    stop: int = 0
    sign: float = 1.0


@dataclass(frozen=True)
class Rows:
    """Consecutive rows: the sum of the terms, plus a bias."""

    terms: tuple[Term, ...]
    bias: Array  # (n,) float64

    @property
    def size(self) -> int:
        return len(self.bias)


def split(affine: Affine) -> list[Rows]:
    """`affine` as groups of rows, to be joined in this order."""
    names = list(affine.blocks)
    looks = np.array([(affine.blocks[name] != 0).any(axis=1) for name in names], bool)
    looks = looks.reshape(len(names), affine.size).T  # (n, sources)
    starts = [0, *(np.flatnonzero((looks[1:] != looks[:-1]).any(axis=1)) + 1)]
    constant = ~looks.any(axis=1)
    if len(starts) > MAX_GROUPS or (constant.any() and not constant.all()):
        starts = [0]
    stops = [*starts[1:], affine.size]
    return [_rows(affine, slice(a, b)) for a, b in zip(starts, stops, strict=True)]


def sizes(affine: Affine) -> dict[str, int]:
    """source -> its size."""
    return {source: matrix.shape[1] for source, matrix in affine.blocks.items()}


def _rows(affine: Affine, rows: slice) -> Rows:
    blocks = ((source, matrix[rows]) for source, matrix in affine.blocks.items())
    return Rows(tuple(_term(s, m) for s, m in blocks if m.any()), affine.bias[rows])


def _term(source: str, matrix: Array) -> Term:
    places = np.abs(matrix).argmax(axis=1)
    picked = matrix[np.arange(len(matrix)), places]
    one_each = ((matrix != 0).sum(axis=1) == 1).all()
    in_a_row = (np.diff(places) == 1).all()
    if one_each and in_a_row and abs(picked[0]) == 1 and (picked == picked[0]).all():
        start = int(places[0])
        return Term(source, None, start, start + len(matrix), float(picked[0]))
    return Term(source, matrix)
