"""LSTM cells recognised in the affine form, by their mathematics alone.

Rules
- A cell is h' = sigmoid(o) * tanh(c') and c' = sigmoid(f) * c + sigmoid(i) * tanh(g), with i, f,
  g, o affine (Hochreiter & Schmidhuber 1997; the forget gate from Gers, Schmidhuber & Cummins
  2000), whatever operations spell it.
- Its gates may depend on anything computed before it and, of the state, on its own h.
- Its h and c lie in one piece each of a state port, and come back to the same place.
- A port is given to cells when cells carry all of it. A cell of which either port is not is left
  as the products and activations that it was.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from export.form import Affine, Form
from export.network import LstmCell, Network, Node, StateSlice, prove
from export.trace import Trace

Array = np.ndarray


def lower(form: Form, trace: Trace) -> Network:
    """Recognise the cells of `form`, and prove the network against the trace.

    Raises:
        LoweringError: the proof failed.
    """
    network = _Recogniser(form).network()
    prove(network, trace)
    return network


@dataclass(frozen=True)
class _Pick:
    """value[j] = root[index[j]]."""

    root: str
    index: Array


def _picks(affine: Affine, rows: Array) -> list[_Pick] | None:
    """`affine` at `rows` as a plain sum of picked elements, one of each root; None if it is not."""
    if affine.bias[rows].any():
        return None
    picks = []
    for root, matrix in affine.blocks.items():
        part = matrix[rows]
        if not part.any():
            continue
        if not ((part == 1).sum(axis=1) == 1).all() or not ((part != 0).sum(axis=1) == 1).all():
            return None
        picks.append(_Pick(root, part.argmax(axis=1)))
    return picks


@dataclass(frozen=True)
class _Match:
    """A cell as found in the form: roots and the elements of them, in the order of h'."""

    h_root: str
    gates: tuple[_Pick, ...]  # of the activations of i, f, g, o
    c: _Pick  # of the state
    fc: _Pick  # of the products f * c and i * g
    ig: _Pick


class _Recogniser:
    def __init__(self, form: Form) -> None:
        self._form = form

    def network(self) -> Network:
        form = self._form
        cells = self._cells()
        inside = cells.values()
        nodes: list[Node] = []
        for root in form.roots.values():
            if root.name in cells:
                cell = cells[root.name][1]
                nodes.append(replace(cell, input=_rewrite(cell.input, inside)))
            elif root.fn != "input":
                nodes.append(replace(root, args=tuple(_rewrite(a, inside) for a in root.args)))
        y = _rewrite(form.y, inside)
        carried = {s.port for _, cell in inside for s in (cell.h, cell.c)}
        free = {p: _rewrite(a, inside) for p, a in form.states.items() if p not in carried}
        sizes = {port: form.roots[port].size for port in form.states}
        live = _live(nodes, [y, *free.values()])
        return Network(live, y, sizes, free, form.roots["x"].size)

    def _cells(self) -> dict[str, tuple[_Match, LstmCell]]:
        """h' root -> the cell there, without those whose ports are not all carried by cells."""
        found: dict[str, tuple[_Match, LstmCell]] = {}
        for name in self._form.roots:
            match = self._match(name)
            cell = self._cell(match, f"lstm_{len(found)}") if match else None
            if match and cell:
                found[name] = (match, cell)
        while True:
            whole = self._whole_ports([cell for _, cell in found.values()])
            kept = {n: (m, c) for n, (m, c) in found.items() if {c.h.port, c.c.port} <= whole}
            if len(kept) == len(found):
                return found
            found = kept

    def _whole_ports(self, cells: list[LstmCell]) -> set[str]:
        whole = set()
        for port in self._form.states:
            pieces = sorted(
                (s.start, s.stop) for cell in cells for s in (cell.h, cell.c) if s.port == port
            )
            size = self._form.roots[port].size
            if [n for start, stop in pieces for n in range(start, stop)] == list(range(size)):
                whole.add(port)
        return whole

    def _match(self, name: str) -> _Match | None:
        root = self._form.roots[name]
        for o, tanh_c in self._products(_Pick(name, np.arange(root.size)), "sigmoid", "tanh"):
            cell = self._form.roots[tanh_c.root].args[0]
            terms = _picks(cell, tanh_c.index)
            if terms is None or len(terms) != 2:
                continue
            for fc, ig in (terms, terms[::-1]):
                for f, c in self._products(fc, "sigmoid", "input"):
                    for i, g in self._products(ig, "sigmoid", "tanh"):
                        if c.root != "x":
                            return _Match(name, (i, f, g, o), c, fc, ig)
        return None

    def _products(self, pick: _Pick, first: str, second: str) -> Iterator[tuple[_Pick, _Pick]]:
        """`pick` as a product of elements of a `first` root and of a `second` one."""
        root = self._form.roots[pick.root]
        if root.fn != "mul":
            return
        sides = [_picks(arg, pick.index) for arg in root.args]
        for a, b in (sides, sides[::-1]):
            if a and b and len(a) == len(b) == 1:
                found = [self._form.roots[p[0].root].fn for p in (a, b)]
                if found == [first, second]:
                    yield a[0], b[0]

    def _cell(self, match: _Match, name: str) -> LstmCell | None:
        """The cell's matrices, its units in the order in which the state port holds them."""
        h = self._place(match)
        if h is None:
            return None
        port, places = h
        order = np.argsort(places)
        c_places = match.c.index[order]
        h_slice = _slice(port, places[order])
        c_slice = _slice(match.c.root, c_places)
        if h_slice is None or c_slice is None or not self._returns(match, c_slice, order):
            return None
        gates = [_rows(self._form.roots[g.root].args[0], g.index[order]) for g in match.gates]
        stacked = _stack(gates)
        recurrent = stacked.blocks.get(port, np.zeros((stacked.size, 0)))
        inner = recurrent[:, h_slice.start : h_slice.stop]
        if np.count_nonzero(inner) != np.count_nonzero(recurrent):
            return None  # a gate looks at another part of the port
        sources = {source: m for source, m in stacked.blocks.items() if source != port}
        if any(self._form.roots[s].fn == "input" and s != "x" for s in sources):
            return None  # a gate looks at another state
        if not recurrent.size:
            inner = np.zeros((stacked.size, len(order)))
        return LstmCell(name, Affine(sources, stacked.bias), inner, h_slice, c_slice)

    def _place(self, match: _Match) -> tuple[str, Array] | None:
        """The state port that h' goes to, and where each element of it lies there."""
        for port, affine in self._form.states.items():
            matrix = affine.blocks.get(match.h_root)
            if matrix is None:
                continue
            places = matrix.argmax(axis=0)
            if _is_pick(affine, places, match.h_root, np.arange(matrix.shape[1])):
                return port, places
        return None

    def _returns(self, match: _Match, c: StateSlice, order: Array) -> bool:
        """The port gets back f * c + i * g where it held c."""
        terms = _picks(self._form.states[c.port], np.arange(c.start, c.stop))
        wanted = {(t.root, tuple(t.index[order])) for t in (match.fc, match.ig)}
        return terms is not None and {(t.root, tuple(t.index)) for t in terms} == wanted


def _is_pick(affine: Affine, rows: Array, root: str, index: Array) -> bool:
    picks = _picks(affine, rows)
    return (
        picks is not None
        and len(picks) == 1
        and picks[0].root == root
        and bool((picks[0].index == index).all())
    )


def _slice(port: str, places: Array) -> StateSlice | None:
    start, stop = int(places[0]), int(places[0]) + len(places)
    return StateSlice(port, start, stop) if (places == np.arange(start, stop)).all() else None


def _rows(affine: Affine, rows: Array) -> Affine:
    return Affine(
        {s: m[rows] for s, m in affine.blocks.items() if m[rows].any()}, affine.bias[rows]
    )


def _stack(parts: list[Affine]) -> Affine:
    sources = dict.fromkeys(source for part in parts for source in part.blocks)
    blocks = {}
    for source in sources:
        width = next(p.blocks[source].shape[1] for p in parts if source in p.blocks)
        rows = [p.blocks.get(source, np.zeros((p.size, width))) for p in parts]
        blocks[source] = np.concatenate(rows)
    return Affine(blocks, np.concatenate([part.bias for part in parts]))


def _rewrite(affine: Affine, cells: Iterable[tuple[_Match, LstmCell]]) -> Affine:
    """Say `affine` in terms of the cells' h and c instead of the roots inside them."""
    blocks = dict(affine.blocks)
    for match, cell in cells:
        places = np.argsort(match.c.index)  # the order in which the port holds the units
        if match.h_root in blocks:
            blocks[f"{cell.name}.h"] = blocks.pop(match.h_root)[:, places]
        one, two = blocks.get(match.fc.root), blocks.get(match.ig.root)
        if one is None or two is None:
            continue
        through = one[:, match.fc.index[places]]
        whole = [np.count_nonzero(through) == np.count_nonzero(m) for m in (one, two)]
        if all(whole) and (through == two[:, match.ig.index[places]]).all():
            del blocks[match.fc.root], blocks[match.ig.root]
            blocks[f"{cell.name}.c"] = through
    return Affine(blocks, affine.bias)


def _live(nodes: list[Node], ends: list[Affine]) -> tuple[Node, ...]:
    """The cells, and the roots that an end or another live node needs."""
    needed = {source for affine in ends for source in affine.blocks}
    kept: list[Node] = []
    for node in reversed(nodes):
        if isinstance(node, LstmCell):
            needed |= set(node.input.blocks)
        elif node.name in needed:
            needed |= {source for arg in node.args for source in arg.blocks}
        else:
            continue
        kept.append(node)
    return tuple(reversed(kept))
