"""Row-isolated int8: products in which no row's scale depends on another row.

An LSTM's h lies in (-1, 1), and a GRU's, so its scale is the constant 1/127, whatever is in the
batch (stock dynamic quantization takes one scale from the greatest value of the whole matrix). So
does every value that is bounded by its mathematics. Weights are int8 with a scale per output
column (see `int8_weights`). x and whatever else has no bound stay in float.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from export.algebra.affine import Affine
from export.algebra.cells import Cell
from export.algebra.form import Root
from export.algebra.network import Network
from export.algebra.pointwise import FUNCTIONS
from export.algebra.terms import Rows, Term, sizes, split
from export.errors import NothingQuantizedError
from export.graphs.graph_builder import MICROSOFT, GraphBuilder
from export.graphs.int8_weights import ZERO_POINT, quantize_pairs
from export.graphs.step_graph import Products, named_affines, split_columns, write_step_graphs
from export.precision import ALL_ROWWISE, Plan, Precision
from service.manifest import Ports

Array = np.ndarray
H_SCALE = 1 / 127  # h in [-1, 1] <-> uint8 1..255
LEAST_PEAK = np.array(1e-30, np.float32)  # of a row of zeros, which must not be divided by zero
MAX_MEAN_SOURCES = 8  # 256 corners
ROUNDING = 1e-12
KEEP_BOUND = ("mul", "relu", "abs", "maximum", "minimum", "where")
MIN_INT8_OUTPUTS = 16  # a narrower product is too small for int8 to gain anything


def int8_layers(network: Network) -> list[str]:
    """The layers whose products can be int8, at least in part."""
    return rowwise_products(network, ALL_ROWWISE)[1]


def write_rowwise_graphs(
    network: Network, ports: Ports, plan: Plan = ALL_ROWWISE
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The chunk graph and the step graph; each layer as `plan` says.

    Raises:
        NothingQuantizedError: no product has outputs enough and a source that is bounded, or wide.
    """
    products, layers = rowwise_products(network, plan)
    if not layers:
        raise NothingQuantizedError(
            f"no product of {MIN_INT8_OUTPUTS} outputs or more has a source that is bounded by its "
            f"mathematics, or one of {MIN_INT8_OUTPUTS} values"
        )
    if all(plan.of(layer) is Precision.FLOAT for layer in layers):
        raise NothingQuantizedError(f"all of {', '.join(layers)} stay in float")
    return write_step_graphs(network, ports, products)


def rowwise_products(network: Network, plan: Plan) -> tuple["RowwiseProducts", list[str]]:
    """Bounded sources in int8; where there are none, wide ones by row.

    And the layers whose products can be int8.
    """
    for by_row in (False, True):
        products = RowwiseProducts(network, plan, by_row)
        layers = [layer for layer, affine in named_affines(network) if products.has_int8(affine)]
        if layers:
            break
    return products, layers


class RowwiseProducts(Products):
    """Products of bounded sources in int8, the others in float.

    With `by_row`, for a network in which none is bounded: wide sources in int8, by the greatest
    magnitude of each row.
    """

    def __init__(self, network: Network, plan: Plan = ALL_ROWWISE, by_row: bool = False) -> None:
        self._bounded = bounded_sources(network)
        self._plan = plan
        self._by_row = by_row

    def has_int8(self, affine: Affine) -> bool:
        """Whether a part of this map can be int8."""
        width = sizes(affine)
        return any(self._inside(rows, width) for rows in split(affine))

    def affine(self, g: GraphBuilder, affine: Affine, values: Mapping[str, str], layer: str) -> str:
        if self._plan.of(layer) is Precision.FLOAT:
            return g.affine(affine, values)
        width = sizes(affine)
        parts = [self._rows(g, rows, values, width, [rows.size])[0] for rows in split(affine)]
        return parts[0] if len(parts) == 1 else g.one("Concat", *parts, axis=-1)

    def pieces(
        self,
        g: GraphBuilder,
        affine: Affine,
        values: Mapping[str, str],
        layer: str,
        cuts: Sequence[int],
    ) -> Sequence[str]:
        groups = split(affine)
        if len(groups) > 1 or self._plan.of(layer) is Precision.FLOAT:
            return super().pieces(g, affine, values, layer, cuts)
        return self._rows(g, groups[0], values, sizes(affine), cuts)

    def _rows(
        self,
        g: GraphBuilder,
        rows: Rows,
        values: Mapping[str, str],
        width: Mapping[str, int],
        cuts: Sequence[int],
    ) -> Sequence[str]:
        inside = self._inside(rows, width)
        if not inside:
            return split_columns(g, g.rows(rows, values, width), cuts)
        outside = [t for t in rows.terms if t not in inside]
        write = _products_by_row if self._by_row else _products_by_bound
        products = write(g, inside, rows.bias, values, cuts)
        ends = np.cumsum(cuts)
        return [
            _add(g, product, _cut(outside, end - size, end), values, width)
            for product, size, end in zip(products, cuts, ends, strict=True)
        ]

    def _inside(self, rows: Rows, width: Mapping[str, int]) -> list[Term]:
        """The terms that can be int8."""
        if rows.size < MIN_INT8_OUTPUTS:
            return []
        products = [t for t in rows.terms if t.matrix is not None]
        if self._by_row:
            return [t for t in products if width[t.source] >= MIN_INT8_OUTPUTS]
        return [t for t in products if t.source in self._bounded]


def _products_by_bound(
    g: GraphBuilder,
    terms: Sequence[Term],
    bias: Array,
    values: Mapping[str, str],
    cuts: Sequence[int],
) -> list[str]:
    """The sum of products of bounded sources, and the bias: an int8 product for each size."""
    matrix = np.concatenate([term.matrix for term in terms if term.matrix is not None], axis=1)
    return int8_products(g, [values[term.source] for term in terms], matrix, bias, cuts)


def _products_by_row(
    g: GraphBuilder,
    terms: Sequence[Term],
    bias: Array,
    values: Mapping[str, str],
    cuts: Sequence[int],
) -> Sequence[str]:
    """The sum of products, each in int8 by the peak of its source's row, and the bias."""
    total = ""
    for term in terms:
        if term.matrix is not None:
            product = int8_product_by_row(g, values[term.source], term.matrix)
            total = g.one("Add", total, product) if total else product
    total = g.one("Add", total, g.constant(bias.astype(np.float32), "bias"))
    return split_columns(g, total, cuts)


def _cut(terms: Sequence[Term], start: int, stop: int) -> list[Term]:
    """What the rows start:stop take."""
    return [
        replace(t, start=t.start + start, stop=t.start + stop)
        if t.matrix is None
        else replace(t, matrix=t.matrix[start:stop])
        for t in terms
    ]


def _add(
    g: GraphBuilder,
    total: str,
    terms: Sequence[Term],
    values: Mapping[str, str],
    width: Mapping[str, int],
) -> str:
    """Add terms in float. A product is added by the Gemm that computes it."""
    for term in terms:
        if term.matrix is None:
            picked = g.term(term, values[term.source], width[term.source])
            total = g.one("Sub" if term.sign < 0 else "Add", total, picked)
        else:
            weight = g.constant(term.matrix.T.astype(np.float32), "weight")
            total = g.one("Gemm", values[term.source], weight, total)
    return total


def int8_product_by_row(g: GraphBuilder, value: str, matrix: Array) -> str:
    """Values (.., n_in) without a bound, times a matrix (n_out, n_in), by each row's own peak."""
    peak = g.shared("ReduceMax", g.shared("Abs", value), g.ints(-1), keepdims=1)
    peak = g.shared("Max", peak, g.constant(LEAST_PEAK, "least"))
    nothing = np.zeros(len(matrix))
    (product,) = int8_products(g, [g.shared("Div", value, peak)], matrix, nothing, [len(matrix)])
    return g.one("Mul", product, peak)


def int8_products(
    g: GraphBuilder,
    sources: list[str],
    matrix: Array,
    bias: Array,
    cuts: Sequence[int],
    peak: float = 1.0,
) -> list[str]:
    """Values in [-peak, peak], joined on the last axis, times a matrix, plus a bias.

    Args:
        matrix: (n_out, n_in) float64.
        bias: (n_out,).
        cuts: of the results, n_out together.
    """
    quantized = _quantize(g, sources, peak)
    in_scale = g.constant(np.array(peak * H_SCALE, np.float32), "h_scale")
    zero_point = g.constant(np.array(ZERO_POINT, np.uint8), "zero_point")
    levels, scales = quantize_pairs(matrix)
    results = []
    for stop, size in zip(np.cumsum(cuts), cuts, strict=True):
        columns = slice(stop - size, stop)
        results.append(
            g.one(
                "MatMulIntegerToFloat",
                quantized,
                g.constant(np.ascontiguousarray(levels[:, columns]), "weight_s8"),
                in_scale,
                g.constant(scales[columns], "weight_scale"),
                zero_point,
                "",  # the weights' zero point is 0: given as an input, it costs the fast kernels
                g.constant(bias[columns].astype(np.float32), "bias"),
                domain=MICROSOFT,
            )
        )
    return results


def _quantize(g: GraphBuilder, names: list[str], peak: float) -> str:
    whole = names[0] if len(names) == 1 else g.shared("Concat", *names, axis=1)
    return g.shared(
        "QuantizeLinear",
        whole,
        g.constant(np.array(peak * H_SCALE, np.float32), "h_scale"),
        g.constant(np.array(ZERO_POINT, np.uint8), "zero_point"),
    )


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
