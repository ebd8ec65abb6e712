"""The lowered network: cells, what stands around them, and any other recurrence as it is.

Rules
- Nodes stand in the order of computation. Sources are "x", a state port's name (its value before
  the step), a root's name, and a cell's "NAME.h" and "NAME.c" (after it).
- A state port is carried by cells, piece by piece, or else by an affine value of the sources.
- The network counts only after it gave what the traced module gives, in float64, to 1e-10, on
  random and on extreme inputs, over many carried steps (`prove`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from export.algebra.affine import Affine
from export.algebra.cells import Arithmetic, Cell
from export.algebra.form import Root
from export.algebra.pointwise import FUNCTIONS
from export.algebra.trace import Trace, shape_of
from export.errors import LoweringError

Array = np.ndarray
TOLERANCE = 1e-10  # float64, relative to values of order 1
CHECK_SCALES = (1.0, 30.0, 1e4)  # ordinary, saturating, extreme input
CHECK_STEPS = 30  # of carried state at each scale


Node = Cell | Root


@dataclass(frozen=True)
class Network:
    """One step: x (B, I) and each state (B, n) -> y (B, O) and each new state."""

    nodes: tuple[Node, ...]
    y: Affine
    states: Mapping[str, int]  # port -> flat size
    free: Mapping[str, Affine]  # the new value of each port that no cell carries
    x_size: int
    why_free: Mapping[str, str] = field(default_factory=dict)  # port -> why no cell carries it
    wide: frozenset[str] = frozenset()  # ports that begin outside [-1, 1]

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(node for node in self.nodes if isinstance(node, Cell))

    @property
    def sources(self) -> set[str]:
        """All that something looks at, a cell's own h and c aside."""
        affines = [self.y, *self.free.values()]
        for node in self.nodes:
            affines += [node.input] if isinstance(node, Cell) else node.args
        return {source for affine in affines for source in affine.blocks}

    @property
    def ids(self) -> int | None:
        """x is an integer from 0 to ids - 1; None: x is real."""
        tables = [n.table for n in self.nodes if isinstance(n, Root) and n.table is not None]
        return min((len(table) for table in tables), default=None)

    def step(self, x: Array, state: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        """One step in float64: x (B, I), name -> (B, n); -> y (B, O) and the new state."""
        values = self.values(x, state)
        new = {name: value.copy() for name, value in state.items()}
        for cell in self.cells:
            for k, place in cell.slices.items():
                new[place.port][:, place.start : place.stop] = values[f"{cell.name}.{k}"]
        return self.y(values), new | {port: affine(values) for port, affine in self.free.items()}

    def values(self, x: Array, state: Mapping[str, Array]) -> dict[str, Array]:
        """What every source holds in such a step: name -> (B, n)."""
        values: dict[str, Array] = {"x": x, **state}
        for node in self.nodes:
            if isinstance(node, Root):
                values[node.name] = _apply(node, [arg(values) for arg in node.args], x)
                continue
            for k, value in node.step(Float64(values), node.old(state)).items():
                values[f"{node.name}.{k}"] = value
        return values


def _apply(root: Root, args: list[Array], x: Array) -> Array:
    if root.table is not None:
        return np.asarray(root.table[x].reshape(len(x), -1))
    if root.fn not in FUNCTIONS:
        raise LoweringError(f"no value is defined for `{root.fn}`")
    return np.asarray(FUNCTIONS[root.fn].numpy(*args, *root.constants))


def prove(network: Network, trace: Trace) -> None:
    """Compare the network with the traced module, in float64, over its carried steps.

    Each step begins from the traced module's states: what is compared is the step, and not how
    fast a step that is run again magnifies the rounding of the one before.

    On ordinary input the traced module must give numbers. On greater input it may overflow: inf
    must be inf, and a row in which it gives NaN is compared no further.

    Raises:
        LoweringError: they differ: a bug of ours, since the form was checked before, or a step that
            magnifies rounding, as a quotient of small numbers does. Or the module gives no numbers.
    """
    rng = np.random.default_rng(0)
    state_shapes = [shape_of(node) for node in trace.placeholders()[1:]]
    for scale in CHECK_SCALES:
        state = {
            name: rng.uniform(-1, 1, shape)
            for name, shape in zip(trace.state_names, state_shapes, strict=True)
        }
        theirs = {name: torch.from_numpy(value) for name, value in state.items()}
        counts = np.ones(trace.batch, bool)
        for step in range(CHECK_STEPS):
            x = _check_input(rng, (trace.batch, *trace.x_shape), scale, network.ids)
            ours = {n: v.numpy().reshape(trace.batch, -1) for n, v in theirs.items()}
            y, ours = network.step(x.reshape(trace.batch, -1), ours)
            wanted, theirs = trace.run(torch.from_numpy(x), theirs)
            found = np.concatenate([y, *ours.values()], axis=1)
            right = np.concatenate(
                [v.numpy().reshape(trace.batch, -1) for v in (wanted, *(theirs[n] for n in ours))],
                axis=1,
            )
            if scale == CHECK_SCALES[0] and not np.isfinite(right).all():
                raise LoweringError(
                    f"the step gives NaN or infinity at step {step} on ordinary input (standard "
                    "normal) from states in [-1, 1], so that nothing can be proven of it"
                )
            counts &= ~np.isnan(right).any(axis=1)
            error = _greatest_error(found[counts], right[counts])
            if not error <= TOLERANCE:
                raise LoweringError(
                    f"the lowered network is off by {error:.1e} at step {step} on input of scale "
                    f"{scale:g} (float64, allowed {TOLERANCE:g}): rounding is magnified, or this "
                    "is a bug of ours"
                )


def _check_input(
    rng: np.random.Generator, shape: tuple[int, ...], scale: float, ids: int | None
) -> Array:
    if ids is not None:
        return rng.integers(0, ids, shape)
    return scale * rng.standard_normal(shape)


def _greatest_error(ours: Array, theirs: Array) -> float:
    """|ours - theirs| relative to max(1, |theirs|), at its greatest; inf equals inf alone."""
    with np.errstate(invalid="ignore"):
        error = np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))
    return float(np.where(ours == theirs, 0, error).max(initial=0))


class Float64(Arithmetic[Array]):
    """numpy's, as the proof computes."""

    def __init__(self, values: Mapping[str, Array]) -> None:
        self._values = values

    def affine(self, cell: Cell, part: str, own: Mapping[str, Array]) -> Array:
        return cell.parts[part]({**self._values, **own})

    def split(self, value: Array, sizes: Sequence[int]) -> Sequence[Array]:
        return np.split(value, np.cumsum(sizes)[:-1], axis=1)

    def apply(self, function: str, *arguments: Array, constants: Sequence[float] = ()) -> Array:
        return np.asarray(FUNCTIONS[function].numpy(*arguments, *constants))

    def add(self, a: Array, b: Array) -> Array:
        return np.asarray(a + b)

    def subtract(self, a: Array, b: Array) -> Array:
        return np.asarray(a - b)

    def weigh(self, value: Array, weights: Array) -> Array:
        return np.asarray(value * weights)
