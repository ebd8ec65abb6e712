"""One piece of a state port, held against the equations of the cells.

Rules
- A piece is read as a polynomial in activations and old states (`polynomial`, `activations`),
  whatever operations spell it, and compared with the cells' own equations:
  LSTM: h' = o * h(c'), c' = f * c + i * g, where i and f may look at c and o at c', unit by unit.
  GRU: h' = (1 - z) * n + z * h, n looking at r * h or at r * (R h + b).
  RNN: h' = activation(W x + R h + b).
- What does not match says why; of several reasons the one that came nearest to a cell is kept.
"""

from collections.abc import Iterable
from typing import NoReturn

import numpy as np

from export.algebra.activations import Activated, Activations
from export.algebra.affine import SAME, Affine, equal, rows_of, scaled, stack, take_out
from export.algebra.cells import LINEAR, Cell, GruCell, LstmCell, RnnCell, StateSlice
from export.algebra.form import Form
from export.algebra.polynomial import (
    Expander,
    Pick,
    Polynomial,
    Unit,
    as_unit,
    atoms,
    same,
    split_by,
)

Array = np.ndarray
NO_CELL = "its new value is that of no LSTM, GRU or RNN cell"


class Mismatch(Exception):
    """A piece of state is not this kind of cell; `likeness` tells the nearest kind."""

    def __init__(self, likeness: int, why: str) -> None:
        super().__init__(why)
        self.likeness = likeness


class Reasons:
    """Of each state port, why cells do not carry it: the nearest miss."""

    def __init__(self) -> None:
        self._nearest: dict[str, Mismatch] = {}

    def note(self, port: str, mismatch: Mismatch) -> None:
        if port not in self._nearest or mismatch.likeness > self._nearest[port].likeness:
            self._nearest[port] = mismatch

    def of(self, ports: Iterable[str]) -> dict[str, str]:
        return {port: str(self._nearest[port]) for port in ports if port in self._nearest}


class Matcher:
    """Reads pieces of the states of one form."""

    def __init__(self, form: Form, reasons: Reasons) -> None:
        self._form = form
        self._reasons = reasons
        self._expander = Expander(form)
        self._activations = Activations(form)

    def new_value(self, s: StateSlice) -> Affine:
        return rows_of(self._form.states[s.port], np.arange(s.start, s.stop))

    def match(self, s: StateSlice, kinds: Iterable[type[Cell]]) -> Cell:
        """The cell, of one of these kinds, whose h is the piece `s`.

        Raises:
            Mismatch: it is none.
        """
        new = self._expand(self.new_value(s))
        if new is None:
            _no(0, NO_CELL)
        readers = {LstmCell: self._lstm, GruCell: self._gru, RnnCell: self._rnn}
        nearest: Mismatch | None = None
        for kind in kinds:
            try:
                return readers[kind](s, new)
            except Mismatch as mismatch:
                if nearest is None or mismatch.likeness > nearest.likeness:
                    nearest = mismatch
        raise nearest or Mismatch(0, NO_CELL)

    def _expand(self, affine: Affine) -> Polynomial | None:
        return self._expander.expand(affine, np.arange(affine.size))

    def _own(self, s: StateSlice) -> Pick:
        return Pick(s.port, tuple(range(s.start, s.stop)))

    def _lstm(self, s: StateSlice, new: Polynomial) -> LstmCell:
        """Raises: Mismatch."""
        mismatch = Mismatch(0, NO_CELL)
        for gate, rest in self._activations.gates_of(new):
            if not (outputs := self._outputs(rest)) and as_unit(rest):
                mismatch = Mismatch(1, "h' is a gate times a function that no operator takes")
            for output in outputs:
                cell_state = self._expand(output.argument)
                if cell_state is None:
                    continue
                for c in self._old_states(cell_state):
                    try:
                        return self._lstm_of(s, gate, output, c, cell_state)
                    except Mismatch as found:
                        mismatch = max(mismatch, found, key=lambda m: m.likeness)
                        self._reasons.note(c.port, found)
        raise mismatch

    def _outputs(self, rest: Polynomial) -> list[Activated]:
        """What h(c') may be: an activation, or c' itself as a port keeps it."""
        unit = as_unit(rest)
        read = self._activations.read(unit) if unit else None
        if read is not None:
            return [read]
        new = [self.new_value(c) for c in self._old_states(rest)]
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
        if not same(self._expand(self.new_value(c)) or {}, new_c):
            _no(3, f"c' does not come back to where `{c.port}` held c")
        mixes = [m for m in mixes if m[0].activation == m[1].activation == o.activation]
        if not mixes:
            _no(4, "i, f and o are gates of different functions")
        f, i, g = mixes[0]
        (p_i, i_rest), (p_f, f_rest) = _old(i.argument, c), _old(f.argument, c)
        p_o, o_rest = take_out(o.argument, self.new_value(c), self._form.states)
        if _old(o_rest, c)[0].any():
            _no(6, "o looks at the old c, where ONNX's LSTM looks at the new")
        diagonals = [np.diag(p) for p in (p_i, p_f, p_o)]
        if any((np.diag(d) != p).any() for d, p in zip(diagonals, (p_i, p_f, p_o), strict=True)):
            _no(6, "a gate looks at c through a whole matrix, where a peephole is unit by unit")
        gates = stack([i_rest, f_rest, g.argument, o_rest])
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
        """Raises: Mismatch."""
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
        gates = stack([z.argument, r.argument, looks])
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
        mismatch = Mismatch(3, "the candidate looks at h through no reset gate")
        for name in argument.blocks:
            if self._form.roots[name].fn != "mul":
                continue
            try:
                found = self._reset_before(name, argument, s) or self._reset_after(
                    name, argument, s
                )
            except Mismatch as error:
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
        """Raises: Mismatch."""
        unit = as_unit(new)
        activated = self._activations.read(unit) if unit else None
        if activated is None or activated.activation.function == "linear":
            _no(0, NO_CELL)
        recurrent, inside = _old(activated.argument, s)
        if not recurrent.any():
            _no(1, "h' does not look at the old h")
        return RnnCell("", inside, recurrent, s, activated.activation)


def _no(likeness: int, why: str) -> NoReturn:
    raise Mismatch(likeness, why)


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
