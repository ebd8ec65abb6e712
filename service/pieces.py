"""Chunks of different lengths in one batch, none of which is paid for the longest.

Rules
- A row gets what it would get alone, bit for bit: a batch is only ever cut where rows end, and an
  isolated runtime gives a sequence the same bits in any chunks.
- Where a row ends, the batch is cut if the padding that this saves costs more than another call.

How it works: rows are ordered by length, the longest first, so that those of a piece are a prefix
of the arrays, which is no copy. Measured (`python -m benchmarks.lengths`, column `cut`, fp32,
hidden 32 to 256, 16 and 64 rows): 0.68 to 1.02 of the CPU time of batches of similar length that
are padded; cut at every end it is 0.74 to 3.3 of it, cut at every step 0.73 to 13, not cut at all
0.60 to 26. DESIGN.md ("Batches") has the conditions.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from service.layout import State

Array = np.ndarray


class Piece(NamedTuple):
    """One call: the first `rows` rows, from step `start` to step `end`."""

    rows: int
    start: int
    end: int


class Run(Protocol):
    """`Runtime.run`."""

    def __call__(
        self, x: Array, state: State, lengths: Array | None = None
    ) -> tuple[Array, State]: ...


def cut(lengths: Sequence[int], row_cost: float, call_cost: float) -> list[Piece]:
    """
    Args:
        lengths: steps of each row, at least 1, the longest first.
        row_cost, call_cost: of one step of one row, and of a call; of any one unit.
    Returns:
        The calls, in order of their steps.
    """
    pieces: list[Piece] = []
    start, waste = 0, 0.0
    padded = 0  # rows that ended since `start`
    running = len(lengths)
    for number in range(len(lengths) - 1, -1, -1):
        end = lengths[number]
        padded += 1
        if number and lengths[number - 1] == end:
            continue
        waste += padded * (lengths[number - 1] - end) * row_cost if number else 0.0
        if number == 0 or waste > call_cost:
            pieces.append(Piece(running, start, end))
            start, waste, padded, running = end, 0.0, 0, number
    return pieces


def run_pieces(
    run: Run, x: Array, state: State, lengths: Array, pieces: Sequence[Piece]
) -> tuple[Array, State]:
    """As `Runtime.run` with `lengths` (B,), in pieces; the longest rows come first."""
    final: State = {}
    y: Array | None = None
    for rows, start, end in pieces:
        part = np.ascontiguousarray(x[:rows, start:end])
        done = {name: value[:rows] for name, value in (final or state).items()}
        is_padded = lengths[rows - 1] < end
        here = np.minimum(lengths[:rows], end) - start if is_padded else None
        y_part, done = run(part, done, here)
        if y is None:
            y, final = np.zeros((*x.shape[:2], *y_part.shape[2:]), y_part.dtype), done
            y[:, start:end] = y_part
            continue
        y[:rows, start:end] = y_part
        for name, value in done.items():
            final[name][:rows] = value
    if y is None:
        raise ValueError("no piece, expected at least one")
    return y, final
