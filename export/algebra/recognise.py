"""Cells recognised in the affine form, by their mathematics alone.

Rules
- A piece of a state port is read as a polynomial in activations and old states (`polynomial`,
  `activations`), whatever operations spell it, and compared with the cells' own equations:
  LSTM: h' = o * h(c'), c' = f * c + i * g, where i and f may look at c and o at c', unit by unit.
  GRU: h' = (1 - z) * n + z * h, n looking at r * h or at r * (R h + b).
  RNN: h' = activation(W x + R h + b).
- Gates may depend on anything computed before and, of the state, on the cell's own h.
- h and c lie in one piece each of a state port, and come back to the same place.
- A port is given to cells when cells carry all of it. A cell of which either port is not is left
  as the products and activations that it was; why is kept for the report.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np

from export.algebra.activations import Activated, Activations, equal, rows_of, scaled
from export.algebra.cells import LINEAR, Cell, GruCell, LstmCell, RnnCell, StateSlice
from export.algebra.form import Affine, Form
from export.algebra.network import Network, Node, prove
from export.algebra.polynomial import (
    SAME,
    Expander,
    Pick,
    Polynomial,
    Unit,
    as_unit,
    atoms,
    same,
    split_by,
)
from export.algebra.trace import Trace

Array = np.ndarray
NO_CELL = "its new value is that of no LSTM, GRU or RNN cell"


def lower(form: Form, trace: Trace) -> Network:
    """Recognise the cells of `form`, and prove the network against the trace.

    Raises:
        LoweringError: the proof failed.
    """
    network = _Recogniser(form).network()
    prove(network, trace)
    return network


class _Mismatch(Exception):
    """A piece of state is not this kind of cell; `likeness` tells the nearest kind."""

    def __init__(self, likeness: int, why: str) -> None:
        super().__init__(why)
        self.likeness = likeness


_Reader = Callable[[StateSlice, Polynomial], Cell]  # raises _Mismatch


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
        self._expander = Expander(form)
        self._activations = Activations(form)
        self._order = {name: k for k, name in enumerate(form.roots)}
        self._claimed: set[StateSlice] = set()
        self._why: dict[str, str] = {}  # port -> why cells do not carry it
        self._likeness = dict.fromkeys(form.states, -1)

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
        why = {port: self._why[port] for port in free if port in self._why}
        return Network(live, y, sizes, free, form.roots["x"].size, why)

    def _cells(self) -> dict[str, _Found]:
        """The last root of h' -> the cell, its input in terms of the cells below it.

        Without those whose ports cells do not carry whole, and those that then look at the old
        value of some other state.
        """
        cells: list[Cell] = []
        for kinds in ((self._lstm,), (self._gru, self._rnn)):
            cells += [c for port in self._form.states for c in self._cells_of(port, kinds)]
        while True:
            whole = self._whole_ports(cells)
            for port in {s.port for c in cells for s in c.slices.values()} - whole:
                self._blame(port, _Mismatch(0, "cells carry only a part of it"))
            found = self._found([c for c in cells if {s.port for s in c.slices.values()} <= whole])
            kept = {f.cell.h for f in found.values() if not self._looks_aside(f.cell)}
            if len(kept) == len(cells):
                return found
            cells = [cell for cell in cells if cell.h in kept]

    def _looks_aside(self, cell: Cell) -> bool:
        """Whether, besides its own h and the cells below, it looks at some old state."""
        states = [name for name in cell.input.blocks if name in self._form.states]
        if states:
            what = "another part of" if cell.h.port in states else "the old"
            names = ", ".join(f"`{name}`" for name in states)
            for s in cell.slices.values():
                self._blame(s.port, _Mismatch(5, f"a gate looks at {what} {names}"))
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
            values = tuple(_Value(f"{named.name}.{k}", self._new(s)) for k, s in places)
            found[roots[self._last(cell)]] = _Found(named, values)
        every = [value for f in found.values() for value in f.values]
        return {
            last: replace(f, cell=replace(f.cell, input=self._rewrite(f.cell.input, every)))
            for last, f in found.items()
        }

    def _last(self, cell: Cell) -> int:
        """The place, in the order of computation, of the last root that h' looks at."""
        return max(self._order[root] for root in self._new(cell.h).blocks)

    def _new(self, s: StateSlice) -> Affine:
        return rows_of(self._form.states[s.port], np.arange(s.start, s.stop))

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

    def _cells_of(self, port: str, kinds: Iterable[_Reader]) -> list[Cell]:
        """The cells of these kinds whose h is a piece of `port`."""
        found: list[Cell] = []
        nearest: _Mismatch | None = None
        for s in self._pieces(port):
            if s in self._claimed:
                continue
            new = self._expand(self._new(s))
            for read in kinds:
                try:
                    if new is None:
                        _no(0, NO_CELL)
                    cell = read(s, new)
                    found.append(cell)
                    self._claimed |= set(cell.slices.values())
                    break
                except _Mismatch as mismatch:
                    if nearest is None or mismatch.likeness > nearest.likeness:
                        nearest = mismatch
        if nearest is not None:
            self._blame(port, nearest)
        return found

    def _blame(self, port: str, mismatch: _Mismatch) -> None:
        if mismatch.likeness > self._likeness[port]:
            self._likeness[port] = mismatch.likeness
            self._why[port] = str(mismatch)

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
            through, rest = self._take_out(affine, value.affine)
            if through.any():
                affine = Affine({**rest.blocks, value.source: through}, rest.bias)
        return affine

    def _take_out(self, affine: Affine, value: Affine) -> tuple[Array, Affine]:
        """M and rest of `affine` = M @ value + rest; M is zeros where it is not there whole.

        `value` (H) takes one element of each root for each unit. Of the old state, which may be
        part of it, `affine` may take more besides.
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
            if left.any() and name not in self._form.states:
                return nothing
            matrix[:, index] = left
            blocks[name] = matrix
        blocks = {name: matrix for name, matrix in blocks.items() if matrix.any()}
        return through, Affine(blocks, affine.bias - through @ value.bias)

    def _expand(self, affine: Affine) -> Polynomial | None:
        return self._expander.expand(affine, np.arange(affine.size))

    def _own(self, s: StateSlice) -> Pick:
        return Pick(s.port, tuple(range(s.start, s.stop)))

    def _lstm(self, s: StateSlice, new: Polynomial) -> LstmCell:
        """Raises: _Mismatch."""
        mismatch = _Mismatch(0, NO_CELL)
        for gate, rest in self._activations.gates_of(new):
            if not (outputs := self._outputs(rest)) and as_unit(rest):
                mismatch = _Mismatch(1, "h' is a gate times a function that no operator takes")
            for output in outputs:
                cell_state = self._expand(output.argument)
                if cell_state is None:
                    continue
                for c in self._old_states(cell_state):
                    try:
                        return self._lstm_of(s, gate, output, c, cell_state)
                    except _Mismatch as found:
                        mismatch = max(mismatch, found, key=lambda m: m.likeness)
                        self._blame(c.port, found)
        raise mismatch

    def _outputs(self, rest: Polynomial) -> list[Activated]:
        """What h(c') may be: an activation, or c' itself as a port keeps it."""
        unit = as_unit(rest)
        read = self._activations.read(unit) if unit else None
        if read is not None:
            return [read]
        new = [self._new(c) for c in self._old_states(rest)]
        return [Activated(LINEAR, c) for c in new if same(self._expand(c) or {}, rest)]

    def _old_states(self, polynomial: Polynomial) -> list[StateSlice]:
        """The pieces of ports whose old values are in it."""
        found = []
        for atom in atoms(polynomial):
            start = atom.index[0]
            piece = StateSlice(atom.root, start, start + len(atom.index))
            if atom.root in self._form.states and atom == self._own(piece):
                found.append(piece)
        return found

    def _lstm_of(
        self, s: StateSlice, gate: Unit, output: Activated, c: StateSlice, new_c: Polynomial
    ) -> LstmCell:
        o = self._gate(gate)
        mixes = self._mixes(new_c, c, "c")
        if not same(self._expand(self._new(c)) or {}, new_c):
            _no(3, f"c' does not come back to where `{c.port}` held c")
        mixes = [m for m in mixes if m[0].activation == m[1].activation == o.activation]
        if not mixes:
            _no(4, "i, f and o are gates of different functions")
        f, i, g = mixes[0]
        (p_i, i_rest), (p_f, f_rest) = _old(i.argument, c), _old(f.argument, c)
        p_o, o_rest = self._take_out(o.argument, self._new(c))
        if _old(o_rest, c)[0].any():
            _no(6, "o looks at the old c, where ONNX's LSTM looks at the new")
        diagonals = [np.diag(p) for p in (p_i, p_f, p_o)]
        if any((np.diag(d) != p).any() for d, p in zip(diagonals, (p_i, p_f, p_o), strict=True)):
            _no(6, "a gate looks at c through a whole matrix, where a peephole is unit by unit")
        gates = _stack([i_rest, f_rest, g.argument, o_rest])
        recurrent, inside = _old(gates, s)
        peepholes = np.stack(diagonals) if np.any(diagonals) else None
        kinds = (i.activation, g.activation, output.activation)
        return LstmCell("", inside, recurrent, s, c, peepholes, *kinds)

    def _mixes(
        self, new: Polynomial, old: StateSlice, name: str
    ) -> list[tuple[Activated, Activated, Activated]]:
        """Readings: the gate of the old value, the gate of the candidate, the candidate."""
        parts = split_by(new, self._own(old))
        if parts is None:
            _no(1, f"{name}' is not linear in {name}")
        rest, kept = parts
        keep = as_unit(kept)
        if keep is None or not self._activations.is_gate(keep):
            how = "as it is, by no gate" if set(kept) == {()} else "otherwise than by one gate"
            _no(1, f"{name}' takes over {name} {how}")
        found = []
        for gate, candidate in self._activations.gates_of(rest):
            unit = as_unit(candidate)
            activated = self._activations.read(unit) if unit else None
            if activated is not None:
                found.append((self._gate(keep), self._gate(gate), activated))
        if not found:
            _no(2, f"{name}' takes in no gate times an activation that the operators take")
        return found

    def _gate(self, unit: Unit) -> Activated:
        activated = self._activations.read(unit)
        if activated is None:
            _no(2, "a gate is no sigmoid and no hard sigmoid")
        return activated

    def _gru(self, s: StateSlice, new: Polynomial) -> GruCell:
        """Raises: _Mismatch."""
        if self._own(s) not in atoms(new):
            _no(0, NO_CELL)
        mixes = [m for m in self._mixes(new, s, "h") if _complementary(m[0], m[1])]
        if not mixes:
            _no(
                3,
                "the gates of its old value and of its candidate do not add up to 1",
            )
        z, one_minus_z, n = mixes[0]
        r, looks, product, bias = self._reset(n.argument, s)
        if equal(r.argument, z.argument) or equal(r.argument, one_minus_z.argument):
            _no(5, "its reset and update are one gate (a minimal gated unit)")
        if r.activation != z.activation:
            _no(4, "r and z are gates of different functions")
        gates = _stack([z.argument, r.argument, looks])
        recurrent, inside = _old(gates, s)
        size = s.stop - s.start
        if recurrent[2 * size :].any():
            _no(5, "the candidate looks at h beside the reset gate too")
        recurrent = np.concatenate([recurrent[: 2 * size], product])
        return GruCell("", inside, recurrent, s, bias, z.activation, n.activation)

    def _reset(
        self, argument: Affine, s: StateSlice
    ) -> tuple[Activated, Affine, Array, Array | None]:
        """r, what the candidate takes besides, R of the candidate, and the bias inside the reset.

        The bias is None where the reset stands before the product.
        """
        mismatch = _Mismatch(3, "the candidate looks at h through no reset gate")
        for name in argument.blocks:
            if self._form.roots[name].fn != "mul":
                continue
            try:
                found = self._reset_before(name, argument, s) or self._reset_after(
                    name, argument, s
                )
            except _Mismatch as error:
                mismatch = error
                continue
            if found is not None:
                r, product, bias = found
                blocks = {k: m for k, m in argument.blocks.items() if k != name}
                return r, Affine(blocks, argument.bias), product, bias
        raise mismatch

    def _reset_before(
        self, name: str, argument: Affine, s: StateSlice
    ) -> tuple[Activated, Array, None] | None:
        """A product that is r * h, seen through R."""
        size = s.stop - s.start
        whole = Pick(name, tuple(range(self._form.roots[name].size)))
        for gate, rest in self._activations.gates_of(self._expander.atom(whole)):
            unit = as_unit(rest)
            if unit is None or unit.atom.root != s.port or abs(unit.offset) > SAME:
                continue
            units = np.array(unit.atom.index) - s.start
            if sorted(units.tolist()) != list(range(size)):
                _no(4, "the reset gate reaches only a part of h")
            order = np.argsort(units)
            r = self._gate(gate)
            r = Activated(r.activation, rows_of(r.argument, order))
            return r, unit.slope * argument.blocks[name][:, order], None
        return None

    def _reset_after(
        self, name: str, argument: Affine, s: StateSlice
    ) -> tuple[Activated, Array, Array] | None:
        """A product that is r * (R h + b), one element of it for each unit."""
        alone = Affine({name: argument.blocks[name]}, np.zeros(argument.size))
        product = self._expand(alone)
        for gate, rest in self._activations.gates_of(product or {}):
            unit = as_unit(rest)
            inner = self._activations.read(unit) if unit else None
            if inner is None or inner.activation.function != "linear":
                continue
            matrix, others = _old(inner.argument, s)
            if not matrix.any():
                continue
            if others.blocks:
                names = ", ".join(f"`{name}`" for name in others.blocks)
                _no(4, f"the reset gate reaches {names} too, not only h")
            return self._gate(gate), matrix, inner.argument.bias
        return None

    def _rnn(self, s: StateSlice, new: Polynomial) -> RnnCell:
        """Raises: _Mismatch."""
        unit = as_unit(new)
        activated = self._activations.read(unit) if unit else None
        if activated is None or activated.activation.function == "linear":
            _no(0, NO_CELL)
        recurrent, inside = _old(activated.argument, s)
        if not recurrent.any():
            _no(1, "h' does not look at the old h")
        return RnnCell("", inside, recurrent, s, activated.activation)


def _no(likeness: int, why: str) -> NoReturn:
    raise _Mismatch(likeness, why)


def _complementary(a: Activated, b: Activated) -> bool:
    """a = 1 - b."""
    if a.activation != b.activation:
        return False
    flipped = scaled(b.argument, -1)
    shift = 1.0 if a.activation.function == "clip" else 0.0
    return equal(a.argument, Affine(flipped.blocks, flipped.bias + shift))


def _old(affine: Affine, s: StateSlice) -> tuple[Array, Affine]:
    """What `affine` takes of a piece of the old state (n, H), and the rest of it."""
    blocks = dict(affine.blocks)
    matrix = blocks.pop(s.port, None)
    if matrix is None:
        return np.zeros((affine.size, s.stop - s.start)), affine
    outside = matrix.copy()
    outside[:, s.start : s.stop] = 0
    if outside.any():
        blocks[s.port] = outside
    return matrix[:, s.start : s.stop], Affine(blocks, affine.bias)


def _stack(parts: list[Affine]) -> Affine:
    sources = dict.fromkeys(source for part in parts for source in part.blocks)
    blocks = {}
    for source in sources:
        width = next(p.blocks[source].shape[1] for p in parts if source in p.blocks)
        rows = [p.blocks.get(source, np.zeros((p.size, width))) for p in parts]
        blocks[source] = np.concatenate(rows)
    return Affine(blocks, np.concatenate([part.bias for part in parts]))


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
