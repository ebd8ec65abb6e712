"""Which models and cells are measured: the whole grid, or few for `make bench`.

LSTMs of each hidden size, at each batch size. The one nearest to 128 also in chunks, and beside it
a GRU of its size and an LSTM of two layers: what the advisor compares.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.latency.in_process import Cell
from benchmarks.latency.made import TYPICAL_HIDDEN, Size

MOST_OWN_ROWS = 64  # of a user's model: a variant that runs row by row takes seconds for more


@dataclass(frozen=True)
class Grid:
    """What may be asked for on the command line."""

    hidden: Sequence[int]
    batch: Sequence[int]
    chunk: Sequence[int]  # steps
    rounds: int
    slice_ms: float  # of a contestant, in each round
    sessions: Sequence[int] = (1, 16, 256)  # that ask over the wire
    wire_rounds: int = 1
    wire_seconds: float = 0.4  # of each loop

    @property
    def typical(self) -> int | None:
        """The hidden size of the model that is looked at more closely."""
        if not self.hidden:
            return None
        return min(self.hidden, key=lambda hidden: abs(hidden - TYPICAL_HIDDEN))

    def made(self) -> dict[Size, list[Cell]]:
        if (typical := self.typical) is None:
            return {}
        steps = [(rows, 1) for rows in self.batch]
        few = [cell for cell in steps if cell[0] <= MOST_OWN_ROWS]
        chunks = [(rows, steps) for rows, _ in few for steps in self.chunk]
        cells = {
            Size("lstm", hidden): steps + (chunks if hidden == typical else [])
            for hidden in self.hidden
        }
        return cells | {Size("gru", typical): few, Size("lstm", typical, layers=2): few}

    def own(self) -> list[Cell]:
        """Of a user's model: a loop over time is unrolled by what traces it, so the least chunk."""
        cells = [(rows, 1) for rows in self.batch if rows <= MOST_OWN_ROWS]
        return [*cells, (1, min(self.chunk))] if self.chunk else cells


SHORT = Grid((64, 128, 256), (1, 64), (16,), rounds=7, slice_ms=5)
FULL = Grid(
    (32, 64, 128, 256, 512),
    (1, 16, 64, 256, 1024),
    (16, 128),
    rounds=15,
    slice_ms=10,
    sessions=(1, 16, 64, 256, 1024),
    wire_rounds=3,
    wire_seconds=1.0,
)
