"""Which values of a step lie in [-1, 1] whatever the input, by their mathematics."""

import itertools

import numpy as np

from export.algebra.affine import Affine
from export.algebra.cells import Cell
from export.algebra.form import Root
from export.algebra.network import Network
from export.algebra.pointwise import FUNCTIONS

MAX_MEAN_SOURCES = 8  # 256 corners
ROUNDING = 1e-12
KEEP_BOUND = ("mul", "relu", "abs", "maximum", "minimum", "where")


def bounded_sources(network: Network) -> set[str]:
    """The sources that lie in [-1, 1] whatever the input: every h, sigmoid, tanh, their products.

    A state port that no cell carries is bounded when its new value is, starting from zero: picked
    from bounded sources, or their mean weighted by a gate, as a GRU's h is. A port that begins
    outside [-1, 1] is not bounded.
    """
    found = {name for cell in network.cells for name in _bounded_of(network, cell)}
    found |= {
        port for port in network.states if port not in network.free and _only_bounded(network, port)
    }
    found -= network.wide
    candidates = set(network.free) - network.wide
    while True:  # assume the candidates bounded, and drop those that this does not bear out
        bounded = found | candidates
        for node in network.nodes:
            if isinstance(node, Root) and _bounded_root(node, bounded):
                bounded.add(node.name)
        kept = {p for p in candidates if _bounded_value(network, network.free[p], bounded)}
        if kept == candidates:
            return bounded
        candidates = kept


def _bounded_of(network: Network, cell: Cell) -> frozenset[str]:
    """What is bounded of a cell; nothing of one whose state begins outside [-1, 1]."""
    begins_wide = any(piece.port in network.wide for piece in cell.slices.values())
    return frozenset() if begins_wide else cell.bounded


def _only_bounded(network: Network, port: str) -> bool:
    pieces = ((f"{c.name}.{k}", c, s) for c in network.cells for k, s in c.slices.items())
    return all(name in _bounded_of(network, cell) for name, cell, s in pieces if s.port == port)


def _bounded_root(root: Root, bounded: set[str]) -> bool:
    if root.fn in FUNCTIONS and FUNCTIONS[root.fn].bounded:
        return True
    if root.fn == "clip":
        return max(abs(c) for c in root.constants) <= 1
    args = root.args[1:] if root.fn == "where" else root.args
    return root.fn in KEEP_BOUND and all(_picked(arg) and _picked(arg) <= bounded for arg in args)


def _picked(affine: Affine) -> set[str]:
    """The sources of an affine value each element of which is one source's element; else none."""
    if affine.bias.any() or not affine.blocks:
        return set()
    count = sum((matrix != 0).sum(axis=1) for matrix in affine.blocks.values())
    ones = all(np.isin(matrix, (0.0, 1.0)).all() for matrix in affine.blocks.values())
    return set(affine.blocks) if ones and (count == 1).all() else set()


def _bounded_value(network: Network, affine: Affine, bounded: set[str]) -> bool:
    picked = _picked(affine)
    return (bool(picked) and picked <= bounded) or _is_mean(network, affine, bounded)


def _is_mean(network: Network, affine: Affine, bounded: set[str]) -> bool:
    """Whether products and bounded sources make up a value in [-1, 1], as gated means do.

    Every element must look at one element of each source at most, and be affine in each: then its
    extremes are at the corners, and all corners are tried.
    """
    roots = {node.name: node for node in network.nodes if isinstance(node, Root)}
    muls = [roots[s] for s in affine.blocks if s in roots and roots[s].fn == "mul"]
    parts = [affine, *(arg for mul in muls for arg in mul.args)]
    if not all(_one_of_each(part) for part in parts):
        return False
    if any(set(mul.args[0].blocks) & set(mul.args[1].blocks) for mul in muls):
        return False
    names = {mul.name for mul in muls}
    sizes = {s: m.shape[1] for part in parts for s, m in part.blocks.items() if s not in names}
    if not sizes:  # a constant
        return not muls and bool(np.abs(affine.bias).max() <= 1 + ROUNDING)
    if not set(sizes) <= bounded or len(sizes) > MAX_MEAN_SOURCES:
        return False
    gates = {s for s in sizes if s in roots and _is_gate(roots[s])}
    for corner in itertools.product(*([0.0, 1.0] if s in gates else [-1.0, 1.0] for s in sizes)):
        values = {s: np.full((1, sizes[s]), v) for s, v in zip(sizes, corner, strict=True)}
        values |= {mul.name: mul.args[0](values) * mul.args[1](values) for mul in muls}
        if np.abs(affine(values)).max() > 1 + ROUNDING:
            return False
    return True


def _is_gate(root: Root) -> bool:
    return root.fn == "sigmoid" or (root.fn == "clip" and root.constants == (0.0, 1.0))


def _one_of_each(affine: Affine) -> bool:
    return all(((m != 0).sum(axis=1) <= 1).all() for m in affine.blocks.values())
