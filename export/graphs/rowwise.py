"""Row-isolated int8: products in which no row's scale depends on another row.

An LSTM's h lies in (-1, 1), and a GRU's, so its scale is the constant 1/127, whatever is in the
batch (stock dynamic quantization takes one scale from the greatest value of the whole matrix). So
does every value that is bounded by its mathematics. Weights are int8 with a scale per output
column, and of those of a recurrence a small part that y feels most stays in float (see
`int8_weights`). x and whatever else has no bound stay in float.

The layout is what was measured to be fastest (ONNX Runtime 1.32, AVX-512 VNNI; see
`benchmarks.int8`), and no layout changes a bit of the result:
- gates of one activation are one product;
- a product in float is added by the Gemm that computes it, and Gemm and activation are one kernel.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import numpy as np

from export.algebra.affine import Affine
from export.algebra.bounded import bounded_sources
from export.algebra.network import Network
from export.algebra.sensitivity import Gradients, affine_maps
from export.algebra.terms import Rows, Term, sizes, split
from export.errors import NothingQuantizedError
from export.graphs.cell_graph import fits_nodes, write_cell_graphs
from export.graphs.graph_builder import GraphBuilder
from export.graphs.int8_product import (
    MIN_INT8_OUTPUTS,
    int8_product_by_row,
    int8_products,
    int8_weight,
)
from export.graphs.int8_weights import Int8Matrix, quantize
from export.graphs.step_graph import (
    Block,
    Products,
    input_layer,
    named_affines,
    recurrent_layer,
    split_columns,
    write_step_graphs,
)
from export.lowered import Graphs
from export.precision import ALL_ROWWISE, Plan, Precision
from service.manifest import Ports

Array = np.ndarray
NO_GRADIENTS: Gradients = MappingProxyType({})
FLOAT_PART, JOINED = "float part", "joined"  # sources beside the network's own


def int8_layers(network: Network) -> dict[str, int]:
    """The layers that can be int8, at least in part, and how many weights of each."""
    return rowwise_products(network, ALL_ROWWISE)[1]


def write_rowwise_graphs(
    network: Network,
    ports: Ports,
    plan: Plan = ALL_ROWWISE,
    gradients: Gradients = NO_GRADIENTS,
) -> Graphs:
    """The chunk graph and the step graph; each layer as `plan` says.

    Args:
        gradients: of y (see `algebra.sensitivity`): where there are any, a small part of the
            weights stays in float.
    Raises:
        NothingQuantizedError: no product has outputs enough and a source that is bounded, or wide.
    """
    products, layers = rowwise_products(network, plan, gradients)
    if not layers:
        raise NothingQuantizedError(
            f"no product of {MIN_INT8_OUTPUTS} outputs or more has a source that is bounded by its "
            f"mathematics, or one of {MIN_INT8_OUTPUTS} values"
        )
    if all(plan.of(layer) is Precision.FLOAT for layer in layers):
        raise NothingQuantizedError(f"all of {', '.join(layers)} stay in float")
    of_cells = {f(cell) for cell in network.cells for f in (input_layer, recurrent_layer)}
    int8_cells = [name for name in layers if plan.of(name) is Precision.ROWWISE]
    if fits_nodes(network) and not of_cells & set(int8_cells):
        products.over_time = True
        return write_cell_graphs(network, ports, products)
    return write_step_graphs(network, ports, products)


def rowwise_products(
    network: Network, plan: Plan, gradients: Gradients = NO_GRADIENTS
) -> tuple["RowwiseProducts", dict[str, int]]:
    """Bounded sources in int8; where there are none, wide ones by row. And the layers."""
    for by_row in (False, True):
        products = RowwiseProducts(network, plan, by_row, gradients)
        layers = products.layers()
        if layers:
            break
    return products, layers


class RowwiseProducts(Products):
    """Products of bounded sources in int8, the others in float.

    With `by_row`, for a network in which none is bounded: wide sources in int8, by the greatest
    magnitude of each row.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan = ALL_ROWWISE,
        by_row: bool = False,
        gradients: Gradients = NO_GRADIENTS,
    ) -> None:
        self._network = network
        self._bounded = bounded_sources(network)
        self._own = {own: recurrent_layer(cell) for cell in network.cells for own in cell.own}
        self._plan = plan
        self._by_row = by_row
        maps = affine_maps(network)  # which the network holds, and are told by their identity
        self._gradients = {id(m): gradients[name] for name, m in maps if name in gradients}
        self._done: dict[tuple[bytes, bytes], Int8Matrix] = {}
        self.over_time = False  # whether its sources are sequences (T, B, n) and not (B, n)

    def layers(self) -> dict[str, int]:
        """Those of which a part can be int8, and how many weights that is."""
        found: Counter[str] = Counter()
        for layer, affine in named_affines(self._network):
            for rows in split(affine):
                for term in self._inside(rows):
                    if term.matrix is not None:
                        found[self._own.get(term.source, layer)] += term.matrix.size
        return dict(found)

    def affine(self, g: GraphBuilder, affine: Affine, values: Mapping[str, str], layer: str) -> str:
        groups = split(affine)
        ends = np.cumsum([rows.size for rows in groups])
        gradients = self._gradients.get(id(affine))
        parts: list[str] = []
        for rows, end in zip(groups, ends, strict=True):
            own = None if gradients is None else gradients[:, end - rows.size : end]
            parts += self._rows(g, rows, values, sizes(affine), layer, [rows.size], own)
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
        if len(groups) > 1:
            return super().pieces(g, affine, values, layer, cuts)
        gradients = self._gradients.get(id(affine))
        return self._rows(g, groups[0], values, sizes(affine), layer, cuts, gradients)

    def cell_matrix(self, g: GraphBuilder, blocks: Sequence[Block], hint: str) -> str:
        def is_int8(block: Block) -> bool:
            stored = self._plan.of(block.layer) is Precision.WEIGHTS
            return stored and self._can_be_int8(block.source, block.matrix)

        if not any(is_int8(block) for block in blocks):
            return super().cell_matrix(g, blocks, hint)
        parts = [
            int8_weight(g, block.matrix, stacked=True)
            if is_int8(block)
            else super(RowwiseProducts, self).cell_matrix(g, [block], hint)
            for block in blocks
        ]
        return parts[0] if len(parts) == 1 else g.prepare("Concat", *parts, axis=2)

    def _rows(
        self,
        g: GraphBuilder,
        rows: Rows,
        values: Mapping[str, str],
        width: Mapping[str, int],
        layer: str,
        cuts: Sequence[int],
        gradients: Array | None,
    ) -> Sequence[str]:
        def precision(term: Term) -> Precision:
            return self._plan.of(self._own.get(term.source, layer))

        can_be = self._inside(rows)
        inside = [t for t in can_be if precision(t) is Precision.ROWWISE]
        stored = {t.source for t in can_be if precision(t) is Precision.WEIGHTS}
        weight = partial(_weight, g, stored)
        if not inside:
            return split_columns(g, g.rows(rows, values, width, weight), cuts)
        outside = [t for t in rows.terms if t not in inside]
        if self._by_row:
            products: Sequence[str] = _products_by_row(g, inside, rows.bias, values, cuts)
        else:
            whole = self._joined(g, [values[term.source] for term in inside])
            weights = self._quantized(inside, gradients)
            products = int8_products(g, whole, weights, rows.bias, cuts)
            if weights.rank:
                part = g.shared("MatMul", whole, g.constant(weights.down, "down"))
                values = {**values, FLOAT_PART: part}
                outside.append(Term(FLOAT_PART, weights.up.T.astype(np.float64)))
                outside, values = self._merged(g, outside, values, stored)
        ends = np.cumsum(cuts)
        return [
            self._add(g, product, _cut(outside, end - size, end), values, width, weight)
            for product, size, end in zip(products, cuts, ends, strict=True)
        ]

    def _quantized(self, terms: Sequence[Term], gradients: Array | None) -> Int8Matrix:
        """The matrices of terms side by side; both graphs take them from here."""
        matrix = np.concatenate([term.matrix for term in terms if term.matrix is not None], axis=1)
        key = matrix.tobytes(), b"" if gradients is None else gradients.tobytes()
        if key not in self._done:
            self._done[key] = quantize(matrix, gradients)
        return self._done[key]

    def _merged(
        self, g: GraphBuilder, terms: list[Term], values: Mapping[str, str], apart: Collection[str]
    ) -> tuple[list[Term], Mapping[str, str]]:
        """Products in float become one: a narrow Gemm takes as long as one somewhat wider."""
        free = {t.source: t.matrix for t in terms if t.source not in apart}
        products = {source: matrix for source, matrix in free.items() if matrix is not None}
        if len(products) < 2:
            return terms, values
        whole = self._joined(g, [values[source] for source in products])
        matrix = np.concatenate(list(products.values()), axis=1)
        rest = [t for t in terms if t.source not in products]
        return [*rest, Term(JOINED, matrix)], {**values, JOINED: whole}

    def _joined(self, g: GraphBuilder, sources: Sequence[str]) -> str:
        if len(sources) == 1:
            return sources[0]
        return g.shared("Concat", *sources, axis=2 if self.over_time else 1)

    def _add(
        self,
        g: GraphBuilder,
        total: str,
        terms: Sequence[Term],
        values: Mapping[str, str],
        width: Mapping[str, int],
        weight: Callable[[Term], str],
    ) -> str:
        """Add terms in float. A product is added by the Gemm that computes it."""
        for term in terms:
            if term.matrix is None or self.over_time:  # a Gemm takes no sequences
                value = g.term(term, values[term.source], width.get(term.source, 0), weight)
                total = g.one("Sub" if term.sign < 0 else "Add", total, value)
            else:
                total = g.one("Gemm", values[term.source], weight(term), total)
        return total

    def _inside(self, rows: Rows) -> list[Term]:
        """The terms that can be int8."""
        return [
            t for t in rows.terms if t.matrix is not None and self._can_be_int8(t.source, t.matrix)
        ]

    def _can_be_int8(self, source: str, matrix: Array) -> bool:
        outputs, inputs = matrix.shape
        if outputs < MIN_INT8_OUTPUTS:
            return False
        return inputs >= MIN_INT8_OUTPUTS if self._by_row else source in self._bounded


def _weight(g: GraphBuilder, stored: Collection[str], term: Term) -> str:
    """The matrix (n_in, n_out) of a product in float, stored in int8 if its source is named."""
    matrix = np.zeros((0, 0)) if term.matrix is None else term.matrix
    if term.source in stored:
        return int8_weight(g, matrix)
    return g.constant(matrix.T.astype(np.float32), "weight")


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
