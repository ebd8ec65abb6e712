"""Where the service's float variant stands next to stock ONNX Runtime and the floor, in process.

The targets are the project's own. Each is counted over the cells in which it can be: one step of
each row, one layer, both contestants measured. Ratios of CPU time are of the same rounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.latency.advisor import SERVED
from benchmarks.latency.contestants import FLOORS, STOCK
from benchmarks.latency.point import IN_PROCESS, Model, Point

NOISE = 0.03  # of a ratio: two runs of one contestant differ by as much
FAR_FROM_FLOOR = 1.4  # stock's time over the floor's: there is something to gain
GAIN = 1.2  # to be gained there
BIG_BATCH, BIG_HIDDEN, NEAR_FLOOR = 64, 128, 2.0  # the product is most of the work


@dataclass(frozen=True)
class Cell:
    """One step of `rows` rows: times as ratios to stock ONNX Runtime's."""

    model: str
    hidden: int
    rows: int
    served: float
    floor: float  # the fastest way to compute it


@dataclass(frozen=True)
class Target:
    """One target, and in how many cells it is met."""

    text: str
    met: int
    of: int
    worst: str  # the cell that is farthest from it, with its ratio

    def __str__(self) -> str:
        return f"{self.text}: met in {self.met} of {self.of} cells; farthest {self.worst}"


def targets(models: Sequence[Model], points: Sequence[Point]) -> list[Target]:
    """Those that can be judged by these points."""
    cells = cells_of(models, points)
    far = [cell for cell in cells if 1 / cell.floor > FAR_FROM_FLOOR]
    big = [cell for cell in cells if cell.rows >= BIG_BATCH and cell.hidden >= BIG_HIDDEN]
    floor_text = f"at batch {BIG_BATCH} and hidden {BIG_HIDDEN} or more at most"
    found = (
        _judge(f"{SERVED} is not slower than {STOCK}", cells, lambda c: c.served, 1 + NOISE),
        _judge(
            f"where {STOCK} takes more than {FAR_FROM_FLOOR:g} times the floor, {SERVED} is "
            f"{GAIN:g} times as fast (its time at most {1 / GAIN:.2f} of it)",
            far,
            lambda c: c.served,
            1 / GAIN,
        ),
        _judge(
            f"{floor_text} {NEAR_FLOOR:g} times the floor",
            big,
            lambda c: c.served / c.floor,
            NEAR_FLOOR,
        ),
    )
    return [target for target in found if target is not None]


def _judge(
    text: str, cells: Sequence[Cell], ratio: Callable[[Cell], float], limit: float
) -> Target | None:
    if not cells:
        return None
    worst = max(cells, key=ratio)
    met = sum(ratio(cell) <= limit for cell in cells)
    return Target(text, met, len(cells), f"{ratio(worst):.2f} ({worst.model}, batch {worst.rows})")


def cells_of(models: Sequence[Model], points: Sequence[Point]) -> list[Cell]:
    by_place: dict[tuple[str, int], dict[str, float]] = {}
    for p in points:
        if p.part == IN_PROCESS and p.steps == 1 and p.baseline == STOCK and p.ratio is not None:
            by_place.setdefault((p.model, p.rows), {})[p.contestant] = p.ratio
    hidden = {model.name: model.hidden for model in models}
    return [
        Cell(model, hidden[model], rows, found[SERVED], min(found[f] for f in FLOORS if f in found))
        for (model, rows), found in by_place.items()
        if SERVED in found and any(floor in found for floor in FLOORS)
    ]
