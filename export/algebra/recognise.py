"""Cells found in the affine form and placed in the state ports: the network of a step.

Rules
- Which piece of a state is which cell is read by its mathematics alone (`matching`).
- Gates may depend on anything computed before and, of the state, on the cell's own h and on ports
  that no cell carries.
- h and c lie in one piece each of a state port, and come back to the same place.
- A port is given to cells when cells carry all of it. A cell of which either port is not is left
  as the products and activations that it was; why is kept for the report.
"""

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from export.algebra.affine import Affine, take_out
from export.algebra.cells import Cell, GruCell, LstmCell, RnnCell, StateSlice
from export.algebra.form import Form
from export.algebra.matching import Matcher, Mismatch, Reasons
from export.algebra.network import Network, Node, prove
from export.algebra.trace import Trace

Array = np.ndarray
KINDS = ((LstmCell,), (GruCell, RnnCell))  # LSTMs first: they claim their c


def lower(form: Form, trace: Trace) -> Network:
    """Recognise the cells of `form`, and prove the network against the trace.

    Raises:
        LoweringError: the proof failed.
    """
    network = _Recogniser(form).network()
    prove(network, trace)
    return network


@dataclass(frozen=True)
class _Value:
    """What a cell gives, as others see it: the sum of coefficient * elements of roots."""

    source: str  # what it is called from here on
    affine: Affine  # (H): each row takes one element of each root


@dataclass(frozen=True)
class _Found:
    """A cell in the form, and the values that it gives."""

    cell: Cell
    values: tuple[_Value, ...]


class _Recogniser:
    def __init__(self, form: Form) -> None:
        self._form = form
        self._reasons = Reasons()
        self._matcher = Matcher(form, self._reasons)
        self._order = {name: k for k, name in enumerate(form.roots)}
        self._claimed: set[StateSlice] = set()

    def network(self) -> Network:
        form = self._form
        found = self._cells()
        values = [value for f in found.values() for value in f.values]
        nodes: list[Node] = []
        for root in form.roots.values():
            if root.fn != "input":
                nodes.append(replace(root, args=tuple(self._rewrite(a, values) for a in root.args)))
            if root.name in found:
                nodes.append(found[root.name].cell)
        y = self._rewrite(form.y, values)
        carried = {s.port for f in found.values() for s in f.cell.slices.values()}
        free = {p: self._rewrite(a, values) for p, a in form.states.items() if p not in carried}
        sizes = {port: form.roots[port].size for port in form.states}
        live = _live(nodes, [y, *free.values()])
        return Network(live, y, sizes, free, form.roots["x"].size, self._reasons.of(free))

    def _cells(self) -> dict[str, _Found]:
        """The last root of h' -> the cell, its input in terms of the cells below it.

        Without those whose ports cells do not carry whole, and those that then look at the old
        state of some other cell.
        """
        cells: list[Cell] = []
        for kinds in KINDS:
            cells += [c for port in self._form.states for c in self._cells_of(port, kinds)]
        while True:
            whole = self._whole_ports(cells)
            for port in {s.port for c in cells for s in c.slices.values()} - whole:
                self._reasons.note(port, Mismatch(0, "cells carry only a part of it"))
            found = self._found([c for c in cells if {s.port for s in c.slices.values()} <= whole])
            carried = {s.port for f in found.values() for s in f.cell.slices.values()}
            kept = {f.cell.h for f in found.values() if not self._looks_aside(f.cell, carried)}
            if len(kept) == len(cells):
                return found
            cells = [cell for cell in cells if cell.h in kept]

    def _looks_aside(self, cell: Cell, carried: Set[str]) -> bool:
        """Whether, besides its own h and the cells below, it looks at an old state of a cell."""
        states = [name for name in cell.input.blocks if name in carried]
        if states:
            what = "another part of" if cell.h.port in states else "the old"
            names = ", ".join(f"`{name}`" for name in states)
            for s in cell.slices.values():
                self._reasons.note(s.port, Mismatch(5, f"a gate looks at {what} {names}"))
        return bool(states)

    def _found(self, cells: Iterable[Cell]) -> dict[str, _Found]:
        """The last root of h' -> the cell, named, its input in terms of the others' values."""
        roots = list(self._form.roots)
        counts: Counter[str] = Counter()
        found = {}
        for cell in sorted(cells, key=self._last):
            named = replace(cell, name=f"{cell.kind}_{counts[cell.kind]}")
            counts[cell.kind] += 1
            places = named.slices.items()
            values = tuple(
                _Value(f"{named.name}.{k}", self._matcher.new_value(s)) for k, s in places
            )
            found[roots[self._last(cell)]] = _Found(named, values)
        every = [value for f in found.values() for value in f.values]
        return {
            last: replace(f, cell=replace(f.cell, input=self._rewrite(f.cell.input, every)))
            for last, f in found.items()
        }

    def _last(self, cell: Cell) -> int:
        """The place, in the order of computation, of the last root that h' looks at."""
        return max(self._order[root] for root in self._matcher.new_value(cell.h).blocks)

    def _whole_ports(self, cells: Sequence[Cell]) -> set[str]:
        whole = set()
        for port in self._form.states:
            pieces = sorted(
                (s.start, s.stop) for c in cells for s in c.slices.values() if s.port == port
            )
            size = self._form.roots[port].size
            if [n for start, stop in pieces for n in range(start, stop)] == list(range(size)):
                whole.add(port)
        return whole

    def _cells_of(self, port: str, kinds: Iterable[type[Cell]]) -> list[Cell]:
        """The cells of these kinds whose h is a piece of `port`."""
        found: list[Cell] = []
        for s in self._pieces(port):
            if s in self._claimed:
                continue
            try:
                cell = self._matcher.match(s, kinds)
            except Mismatch as mismatch:
                self._reasons.note(port, mismatch)
                continue
            found.append(cell)
            self._claimed |= set(cell.slices.values())
        return found

    def _pieces(self, port: str) -> list[StateSlice]:
        """Consecutive elements whose new values look at the same roots."""
        affine = self._form.states[port]
        looks = np.array([(m != 0).any(axis=1) for m in affine.blocks.values()], bool)
        looks = looks.reshape(len(affine.blocks), affine.size)
        cuts = (np.flatnonzero((looks[:, 1:] != looks[:, :-1]).any(axis=0)) + 1).tolist()
        return [
            StateSlice(port, start, stop)
            for start, stop in zip([0, *cuts], [*cuts, affine.size], strict=True)
        ]

    def _rewrite(self, affine: Affine, values: Iterable[_Value]) -> Affine:
        """Say `affine` in terms of the cells' h and c instead of the roots inside them."""
        for value in values:
            through, rest = take_out(affine, value.affine, self._form.states)
            if through.any():
                affine = Affine({**rest.blocks, value.source: through}, rest.bias)
        return affine


def _live(nodes: list[Node], ends: list[Affine]) -> tuple[Node, ...]:
    """The cells, and the roots that an end or another live node needs."""
    needed = {source for affine in ends for source in affine.blocks}
    kept: list[Node] = []
    for node in reversed(nodes):
        if isinstance(node, Cell):
            needed |= set(node.input.blocks)
        elif node.name in needed:
            needed |= {source for arg in node.args for source in arg.blocks}
        else:
            continue
        kept.append(node)
    return tuple(reversed(kept))
