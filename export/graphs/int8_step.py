"""A step's products in row-isolated int8: no row's scale depends on another row.

The scale of a value that is bounded by its mathematics is a constant (`int8_product`). Where such a
value and one without a bound stand side by side in one product, as in cat(x, h) @ W, each part is
multiplied by its own rows of W, and the bounded part's product is int8. Where a step has no bounded
value at all, those that are wide take a scale of each row: its greatest magnitude.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
from onnx import helper

from export.errors import NothingQuantizedError
from export.graphs.bounds import Bounds
from export.graphs.graph_builder import GraphBuilder
from export.graphs.int8_product import (
    MIN_INT8_OUTPUTS,
    int8_product_by_row,
    int8_products,
    int8_weight,
)
from export.graphs.int8_weights import quantize
from export.graphs.scan import Shape, write_graphs
from export.graphs.step_model import StepModel, Writer
from export.lowered import Graphs
from export.precision import ALL_ROWWISE, Plan, Precision
from service.manifest import Ports

Array = np.ndarray


def write_int8_graphs(
    model: StepModel, bounds: Bounds, ports: Ports, plan: Plan = ALL_ROWWISE
) -> Graphs:
    """The chunk graph and the step graph; each product as `plan` says.

    Raises:
        NothingQuantizedError: no product has a bounded source and outputs enough.
    """
    products = find_products(model, bounds)
    if not products:
        least = MIN_INT8_OUTPUTS
        raise NothingQuantizedError(
            f"no product of {least} outputs or more has a source that is bounded by its "
            f"mathematics, or one of {least} values"
        )
    kept = {k: p for k, p in products.items() if plan.of(p.layer) is not Precision.FLOAT}
    if not kept:
        layers = ", ".join(product.layer for product in products.values())
        raise NothingQuantizedError(f"all of {layers} stay in float")
    return write_graphs(replace(model, writer=partial(_Int8Writer, kept, plan)), ports)


@dataclass(frozen=True)
class _Part:
    """Columns of a product's left side."""

    value: str
    rows: Array  # of the weight: (columns, outputs)
    peak: float | None  # the value's greatest magnitude; None: it has no bound
    by_row: bool = False  # int8 by the greatest magnitude of each row

    @property
    def is_int8(self) -> bool:
        return self.by_row or bool(self.peak)


@dataclass(frozen=True)
class Product:
    """What is multiplied side by side, and added up."""

    layer: str  # its number, in the order of computation, and its weight's shape
    parts: list[_Part]

    @property
    def int8_weights(self) -> int:
        """How many weights can be int8."""
        return sum(part.rows.size for part in self.parts if part.is_int8)

    def by_row(self) -> "Product":
        """The same with a scale of each row for what is wide."""
        least = MIN_INT8_OUTPUTS
        return replace(self, parts=[replace(p, by_row=len(p.rows) >= least) for p in self.parts])


Products = dict[str, Product]  # by the name of the result


def find_products(model: StepModel, bounds: Bounds) -> Products:
    """The products that can be int8, at least in part."""
    makers = {name: node for node in model.nodes for name in node.output}
    widths = _widths(model)
    every: Products = {}
    for node in model.nodes:
        if node.op_type != "MatMul" or node.domain or node.input[1] not in model.constants:
            continue
        weight = model.constants[node.input[1]]
        if weight.ndim != 2 or weight.shape[1] < MIN_INT8_OUTPUTS:
            continue
        layer = f"product_{len(every)}_{weight.shape[0]}x{weight.shape[1]}"
        parts = _parts(node.input[0], weight, makers, widths, bounds)
        every[node.output[0]] = Product(layer, parts)
    if not any(product.int8_weights for product in every.values()):
        every = {name: product.by_row() for name, product in every.items()}
    return {name: product for name, product in every.items() if product.int8_weights}


def _parts(
    value: str,
    weight: Array,
    makers: dict[str, onnx.NodeProto],
    widths: dict[str, Shape],
    bounds: Bounds,
) -> list[_Part]:
    whole = [_Part(value, weight, bounds.scale(value))]
    node = makers.get(value)
    if whole[0].peak is not None or node is None or node.op_type != "Concat":
        return whole
    sizes = [widths.get(name) for name in node.input]
    (axis,) = (a.i for a in node.attribute if a.name == "axis")
    if any(size is None for size in sizes):
        return whole
    shapes = [size for size in sizes if size is not None]
    if axis not in (-1, len(shapes[0]) - 1) or sum(s[-1] for s in shapes) != len(weight):
        return whole
    ends = np.cumsum([shape[-1] for shape in shapes])[:-1]
    return [
        _Part(name, rows, bounds.scale(name))
        for name, rows in zip(node.input, np.split(weight, ends), strict=True)
    ]


def _widths(model: StepModel) -> dict[str, Shape]:
    """The shapes that ONNX infers; a free axis is -1, and a free last axis hides the value."""
    g = GraphBuilder()
    names: dict[str, str] = {f"{name}_0": f"{name}_0" for name in model.states} | {"x": "x"}
    writer = Writer(model)
    for node in model.nodes:
        writer.node(g, node, names)
    kinds = onnx.TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", kinds, ["B", *model.x_shape])]
    inputs += [
        helper.make_tensor_value_info(f"{name}_0", kinds, ["B", *shape])
        for name, shape in model.state_shapes.items()
    ]
    graph = helper.make_graph(g.nodes, "step", inputs, [], list(g.initializers.values()))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    inferred = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets))
    known = {}
    for info in (*inferred.graph.value_info, *inputs):
        dims = info.type.tensor_type.shape.dim
        if dims and dims[-1].HasField("dim_value"):
            known[info.name] = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims)
    return {name: known[value] for name, value in names.items() if value in known}


class _Int8Writer(Writer):
    def __init__(self, products: Products, plan: Plan, model: StepModel) -> None:
        super().__init__(model)
        self._products = products
        self._plan = plan

    def node(self, g: GraphBuilder, node: onnx.NodeProto, names: dict[str, str]) -> None:
        product = self._products.get(node.output[0])
        if product is None:
            super().node(g, node, names)
            return
        total = ""
        stored = self._plan.of(product.layer) is Precision.WEIGHTS
        for part in sorted(product.parts, key=lambda part: not part.is_int8):
            term = self._product(g, part, self.value(g, part.value, names), stored)
            total = g.one("Add", total, term) if total else term
        names[node.output[0]] = total

    def _product(self, g: GraphBuilder, part: _Part, value: str, stored: bool) -> str:
        if not part.is_int8:
            return g.one("MatMul", value, g.constant(np.ascontiguousarray(part.rows), "weight"))
        matrix = part.rows.T.astype(np.float64)
        if stored:
            return g.one("MatMul", value, int8_weight(g, matrix))
        if part.peak:
            nothing, size = np.zeros(len(matrix)), [len(matrix)]
            return int8_products(g, value, quantize(matrix), nothing, size, part.peak)[0]
        return int8_product_by_row(g, value, matrix)
