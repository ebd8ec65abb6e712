"""The lowered network: LSTM cells recognised in the affine form, and what stands around them.

Rules
- A cell is recognised by its mathematics alone: h' = sigmoid(o) * tanh(c') and
  c' = sigmoid(f) * c + sigmoid(i) * tanh(g), with i, f, g, o affine (Hochreiter & Schmidhuber
  1997; the forget gate from Gers, Schmidhuber & Cummins 2000), whatever operations spell it.
- Its gates may depend on anything computed before it and on its own h; on no other state.
- Its h and c lie in one piece each of a state port, and come back to the same place.
- The network counts only after it gave what the traced module gives, in float64, to 1e-10, on
  random and on extreme inputs, over many carried steps.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from export.errors import LoweringError
from export.form import Affine, Form, Root
from export.trace import Trace, shape_of

Array = np.ndarray
TOLERANCE = 1e-10  # float64, relative to values of order 1
CHECK_SCALES = (1.0, 30.0, 1e4)  # ordinary, saturating, extreme input
CHECK_STEPS = 30  # of carried state at each scale


@dataclass(frozen=True)
class StateSlice:
    """`port.reshape(B, -1)[:, start:stop]`."""

    port: str
    start: int
    stop: int


@dataclass(frozen=True)
class LstmCell:
    """One LSTM layer; gates stacked in the order i, f, g, o; all float64.

    gates = input (sources @ W.T + b) + h @ R.T.
    """

    name: str
    input: Affine  # (4H): W by source, and b
    recurrent: Array  # R (4H, H)
    h: StateSlice
    c: StateSlice

    @property
    def hidden_size(self) -> int:
        return int(self.recurrent.shape[1])


Node = LstmCell | Root


@dataclass(frozen=True)
class Network:
    """Nodes in the order of computation. Sources are "x", a cell's "NAME.h" or "NAME.c", a root."""

    nodes: tuple[Node, ...]
    y: Affine
    states: Mapping[str, int]  # port -> flat size
    x_size: int

    @property
    def cells(self) -> tuple[LstmCell, ...]:
        return tuple(node for node in self.nodes if isinstance(node, LstmCell))

    def step(self, x: Array, state: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        """One step in float64: x (B, I), name -> (B, n); -> y (B, O) and the new state."""
        values: dict[str, Array] = {"x": x}
        new = {name: value.copy() for name, value in state.items()}
        for node in self.nodes:
            if isinstance(node, Root):
                values[node.name] = _apply(node.fn, [arg(values) for arg in node.args])
                continue
            h, c = (state[s.port][:, s.start : s.stop] for s in (node.h, node.c))
            gates = node.input(values) + h @ node.recurrent.T
            i, f, g, o = np.split(gates, 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
            values |= {f"{node.name}.h": h, f"{node.name}.c": c}
            new[node.h.port][:, node.h.start : node.h.stop] = h
            new[node.c.port][:, node.c.start : node.c.stop] = c
        return self.y(values), new


def lower(form: Form, trace: Trace) -> Network:
    """Recognise the cells of `form`, and prove the network against the trace.

    Raises:
        LoweringError: a recurrence is not an LSTM's, or the proof failed.
    """
    network = _Recogniser(form).network()
    _prove(network, trace)
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
        cells: dict[str, tuple[_Match, LstmCell]] = {}
        for name in form.roots:
            match = self._match(name)
            if match:
                cell = self._cell(match, f"lstm_{len(cells)}")
                if cell:
                    cells[name] = (match, cell)
        nodes: list[Node] = []
        for root in form.roots.values():
            if root.name in cells:
                cell = cells[root.name][1]
                nodes.append(replace(cell, input=_rewrite(cell.input, cells.values())))
            elif root.fn != "input":
                args = tuple(_rewrite(arg, cells.values()) for arg in root.args)
                nodes.append(replace(root, args=args))
        y = _rewrite(form.y, cells.values())
        sizes = {n: r.size for n, r in form.roots.items() if r.fn == "input" and n != "x"}
        network = Network(_live(nodes, y), y, sizes, form.roots["x"].size)
        self._check_covered(network)
        return network

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

    def _check_covered(self, network: Network) -> None:
        for port, size in network.states.items():
            covered = sorted(
                (s.start, s.stop) for cell in network.cells for s in (cell.h, cell.c)
                if s.port == port
            )  # fmt: skip
            if [n for pair in covered for n in range(*pair)] != list(range(size)):
                raise LoweringError(
                    f"state `{port}` ({size} values) is not carried by LSTM cells alone: "
                    f"those that were recognised carry {covered or 'none of it'}"
                )
        carried = set(network.states)
        for node in (*network.nodes, Root("y", "", network.y.size, (network.y,))):
            inputs = (node.input,) if isinstance(node, LstmCell) else node.args
            for affine in inputs:
                if carried & set(affine.blocks):
                    raise LoweringError(f"`{node.name}` looks at a state from before its step")


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


def _live(nodes: list[Node], y: Affine) -> tuple[Node, ...]:
    """The cells, and the roots that y or another live node needs."""
    needed = set(y.blocks)
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


def _sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))  # never overflows
    return np.asarray(np.where(z >= 0, 1 / (1 + e), e / (1 + e)))


def _apply(fn: str, args: list[Array]) -> Array:
    if fn == "sigmoid":
        return _sigmoid(args[0])
    if fn == "tanh":
        return np.asarray(np.tanh(args[0]))
    if fn == "relu":
        return np.asarray(np.maximum(args[0], 0))
    if fn == "mul":
        return np.asarray(args[0] * args[1])
    raise LoweringError(f"no value is defined for `{fn}`")


def _prove(network: Network, trace: Trace) -> None:
    rng = np.random.default_rng(0)
    state_shapes = [shape_of(node) for node in trace.placeholders()[1:]]
    for scale in CHECK_SCALES:
        state = {
            name: rng.uniform(-1, 1, shape)
            for name, shape in zip(trace.state_names, state_shapes, strict=True)
        }
        ours = {name: value.reshape(trace.batch, -1) for name, value in state.items()}
        theirs = {name: torch.from_numpy(value) for name, value in state.items()}
        for step in range(CHECK_STEPS):
            x = scale * rng.standard_normal((trace.batch, *trace.x_shape))
            y, ours = network.step(x.reshape(trace.batch, -1), ours)
            wanted, theirs = trace.run(torch.from_numpy(x), theirs)
            error = _greatest_error(
                (y, *ours.values()), (wanted.numpy(), *(theirs[n].numpy() for n in ours))
            )
            if not error <= TOLERANCE:
                raise LoweringError(
                    f"the lowered network is off by {error:.1e} at step {step} on input of scale "
                    f"{scale:g} (float64, allowed {TOLERANCE:g}); this is a bug: please report it"
                )


def _greatest_error(ours: tuple[Array, ...], theirs: tuple[Array, ...]) -> float:
    """|ours - theirs| relative to max(1, |theirs|), at its greatest."""
    return max(
        float((np.abs(a.reshape(b.shape) - b) / np.maximum(1, np.abs(b))).max())
        for a, b in zip(ours, theirs, strict=True)
    )
