"""Which values of a step lie between known bounds, whatever the input.

Rules
- A value's bounds hold for every element of it: [low, high].
- Tanh, Sigmoid, Softmax and the like have theirs by themselves; picks keep them; sums and products
  of bounded values have those that the corners give: an element is a polynomial in elements of
  other values, of degree one in each, so its extremes are at the corners. So a GRU's h, a mean
  weighted by a gate, is seen to stay in [-1, 1].
- A state is bounded when it begins in [-1, 1] and a step cannot take it out: all are assumed to be,
  and those that this does not bear out are dropped, until it does.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from export.errors import LoweringError
from export.graphs.step_model import StepModel

Array = np.ndarray
Interval = tuple[float, float]
Polynomial = dict[tuple[str, ...], float]  # the names that a term multiplies -> its factor

MAX_LEAVES = 8  # 256 corners
ROUNDING = 1e-12
UNIT = (-1.0, 1.0)
BY_THEMSELVES: dict[str, Interval] = {
    "Tanh": UNIT,
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Softsign": UNIT,
    "Sin": UNIT,
    "Cos": UNIT,
    "Erf": UNIT,
    "Sign": UNIT,
}
PICKS = {
    "Slice", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Gather", "Identity", "Split",
    "Expand", "Flatten", "Tile", "GatherElements", "GatherND",
}  # fmt: skip
SUMS = ("Add", "Sub", "Neg", "Mul")


@dataclass(frozen=True)
class Bounds:
    """The bounds of each value that has some, and the states that lie in [-1, 1]."""

    values: Mapping[str, Interval]
    states: frozenset[str]

    def scale(self, name: str) -> float | None:
        """The greatest magnitude; None: there is none."""
        found = self.values.get(name)
        return None if found is None else max(abs(found[0]), abs(found[1]))


def bounded_states(model: StepModel, initial: Mapping[str, Array]) -> Bounds:
    """The bounds of a step's values; `initial`: name -> (1, ...), what sessions begin with."""
    candidates = {
        name
        for name, value in initial.items()
        if value.dtype.kind == "f" and np.abs(value).max(initial=0) <= 1
    }
    while True:
        reader = _Reader(model, {f"{name}_0": UNIT for name in candidates})
        values = reader.read()
        kept = {name for name in candidates if _within(values.get(model.states[name]))}
        if kept == candidates:
            return Bounds(values, frozenset(kept))
        candidates = kept


def picked_from_x(model: StepModel) -> int | None:
    """How many ids there are, of integers x that take rows of tables; None: they take none.

    A state that keeps earlier x, as a window does, takes rows as they do.

    Raises:
        LoweringError: rows are taken by numbers that are computed from x.
    """
    keepers = set(model.states)
    while True:
        same, sizes = _follow_x(model, keepers)
        kept = {name for name in keepers if model.states[name] in same}
        if kept != keepers:
            keepers = kept
            continue
        if None in sizes:
            raise LoweringError("an embedding is taken of something else than x as it comes")
        return min((size for size in sizes if size is not None), default=None)


def _follow_x(model: StepModel, keepers: set[str]) -> tuple[set[str], list[int | None]]:
    """The values that hold x as it came, now or earlier; the sizes of the tables that they pick of.

    None is a table that is picked of by what was computed from x.
    """
    same = {"x", *(f"{name}_0" for name in keepers)}
    moved: set[str] = set()
    sizes: list[int | None] = []
    for node in model.nodes:
        if node.op_type == "Gather" and node.input[0] in model.constants:
            if node.input[1] in moved:
                sizes.append(None)
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            if node.input[1] in same:
                sizes.append(model.constants[node.input[0]].shape[axis])
            continue
        given = [name for name in node.input if name in same]
        if given and node.op_type != "Shape":
            joined = node.op_type == "Concat" and len(given) == len(node.input)
            picked = node.op_type in PICKS | {"Cast"}
            (same if joined or picked else moved).update(node.output)
        if any(name in moved for name in node.input):
            moved.update(node.output)
    return same, sizes


def _within(found: Interval | None) -> bool:
    return found is not None and found[0] >= -1 - ROUNDING and found[1] <= 1 + ROUNDING


@dataclass
class _Reader:
    model: StepModel
    values: dict[str, Interval]
    polynomials: dict[str, Polynomial] = field(default_factory=dict)

    def read(self) -> dict[str, Interval]:
        for node in self.model.nodes:
            found = self._bounds(node)
            if found is not None:
                for name in node.output:
                    self.values[name] = found
        return self.values

    def _of(self, name: str) -> Interval | None:
        if name in self.model.constants:
            value = self.model.constants[name]
            if value.dtype.kind != "f" or not value.size or not np.isfinite(value).all():
                return None
            return float(value.min()), float(value.max())
        return self.values.get(name)

    def _bounds(self, node: onnx.NodeProto) -> Interval | None:
        if node.domain:
            return None
        op = node.op_type
        if op in BY_THEMSELVES:
            return BY_THEMSELVES[op]
        if op in PICKS:
            return self._of(node.input[0])
        if op in SUMS:
            return self._sum(node)
        given = [self._of(name) for name in node.input if name]
        if op == "Relu" and given[0]:
            return max(given[0][0], 0.0), max(given[0][1], 0.0)
        if op == "Abs" and given[0]:
            return 0.0, max(abs(given[0][0]), abs(given[0][1]))
        if op == "Where":
            given = given[1:] if len(given) == 3 else []
        if op in ("Where", "Concat", "Max", "Min"):
            known = [bounds for bounds in given if bounds is not None]
            if known and len(known) == len(given):
                return min(low for low, _ in known), max(high for _, high in known)
        ends = [self.model.constants.get(name) for name in node.input[1:]]
        if op == "Clip" and len(ends) == 2 and all(end is not None for end in ends):
            low, high = (float(end) for end in ends if end is not None)
            return low, high
        return None

    def _sum(self, node: onnx.NodeProto) -> Interval | None:
        """A sum or product of bounded values, by the corners of all that it is made of."""
        if any(self._of(name) is None for name in node.input):
            return None
        parts = [self._polynomial(name) for name in node.input]
        whole = _combine(node.op_type, parts)
        if whole is None or len({name for term in whole for name in term}) > MAX_LEAVES:
            whole = _combine(node.op_type, [{(name,): 1.0} for name in node.input])
        if whole is None:  # a value times itself
            low, high = self._of(node.input[0]) or UNIT
            corners = (low * low, low * high, high * high)
            return min(corners), max(corners)
        self.polynomials[node.output[0]] = whole
        return self._corners(whole)

    def _polynomial(self, name: str) -> Polynomial:
        if name in self.polynomials:
            return self.polynomials[name]
        if name in self.model.constants and self.model.constants[name].size == 1:
            return {(): float(self.model.constants[name].reshape(()))}
        return {(name,): 1.0}

    def _corners(self, polynomial: Polynomial) -> Interval:
        names = sorted({name for term in polynomial for name in term})
        found = []
        for corner in itertools.product(*(self._of(name) or UNIT for name in names)):
            value = dict(zip(names, corner, strict=True))
            found.append(
                sum(f * np.prod([value[n] for n in term]) for term, f in polynomial.items())
            )
        return float(min(found)), float(max(found))


def _combine(op: str, parts: list[Polynomial]) -> Polynomial | None:
    """The polynomial of Add, Sub, Neg or Mul; None: some value would be squared."""
    if op == "Neg":
        return {term: -factor for term, factor in parts[0].items()}
    first, second = parts
    if op == "Mul":
        product: Polynomial = {}
        for (a, f), (b, g) in itertools.product(first.items(), second.items()):
            if set(a) & set(b):
                return None
            term = tuple(sorted((*a, *b)))
            product[term] = product.get(term, 0.0) + f * g
        return product
    sign = -1.0 if op == "Sub" else 1.0
    total = dict(first)
    for term, factor in second.items():
        total[term] = total.get(term, 0.0) + sign * factor
    return total
