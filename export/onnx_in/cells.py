"""LSTM, GRU and RNN nodes of a one-step graph, written as products and gate arithmetic.

At one step the operators are MatMul and a few element-wise operations; so spelled, their products
can be int8, and their bounded h is seen. What is not an ordinary cell (other activations, clip,
two directions, lengths, weights that are no constants) stays the node that it is.

Equations and orders of gates as in ONNX's operator specification, LSTM-14, GRU-14, RNN-14.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graphs.graph_builder import GraphBuilder
from export.onnx_in.source import Array

CELLS = {"LSTM": 4, "GRU": 3, "RNN": 1}  # operator -> blocks of H rows in W
PLAIN = {"hidden_size", "layout", "linear_before_reset"}
DEFAULTS: dict[str, object] = {"direction": b"forward", "input_forget": 0}
ACTIVATIONS = {
    "LSTM": [b"Sigmoid", b"Tanh", b"Tanh"],
    "GRU": [b"Sigmoid", b"Tanh"],
    "RNN": [b"Tanh"],
}


def unroll_cells(model: onnx.ModelProto) -> None:
    """Write the recurrent nodes that run one step as plain operators, in place."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input)
    }
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    g = _Builder()
    for node in graph.node:
        weights = _weights(node, constants, shapes)
        if weights is None:
            g.nodes.append(node)
        else:
            _Cell(g, node, weights).write()
    nodes = list(g.nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(g.initializers.values())


class _Builder(GraphBuilder):
    """Names that the graph around has not."""

    def fresh(self, hint: str) -> str:
        return super().fresh(f"cell/{hint}")


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _default(node: onnx.NodeProto, name: str) -> object:
    if name == "activations":
        return ACTIVATIONS[node.op_type]
    return DEFAULTS.get(name)


def _input(node: onnx.NodeProto, place: int) -> str:
    return node.input[place] if place < len(node.input) else ""


def _weights(
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    shapes: Mapping[str, list[int]],
) -> dict[str, Array] | None:
    """W (G*H, I), R (G*H, H), B (2*G*H,), P (3*H,) of an ordinary cell of one step; else None."""
    if node.op_type not in CELLS or node.domain:
        return None
    given = _attributes(node)
    others = {name: value for name, value in given.items() if name not in PLAIN}
    if any(value != _default(node, name) for name, value in others.items()):
        return None
    names = {"W": _input(node, 1), "R": _input(node, 2), "B": _input(node, 3)}
    if node.op_type == "LSTM":
        names["P"] = _input(node, 7)
    steps = shapes.get(node.input[0], [])
    if _input(node, 4) or len(steps) != 3 or steps[1 if given.get("layout") else 0] != 1:
        return None
    if not all(name in constants for name in names.values() if name):
        return None
    return {k: numpy_helper.to_array(constants[n])[0] for k, n in names.items() if n}


class _Cell:
    """One node under rewriting."""

    def __init__(self, g: GraphBuilder, node: onnx.NodeProto, weights: Mapping[str, Array]) -> None:
        self._g = g
        self._node = node
        self._given = _attributes(node)
        self._axis = 1 if self._given.get("layout") else 0  # of the step in X, of direction in h
        self._weights = weights
        self._size = weights["R"].shape[-1]
        blocks = CELLS[node.op_type]
        zeros = np.zeros(2 * blocks * self._size, weights["R"].dtype)
        bias = weights.get("B", zeros)
        self._wb, self._rb = np.split(bias, 2)

    def write(self) -> None:
        g, node = self._g, self._node
        x = g.one("Squeeze", node.input[0], g.ints(self._axis))  # (B, I)
        h = self._state(5)
        rules: dict[str, Callable[[str, str], tuple[str, str]]] = {
            "LSTM": self._lstm,
            "GRU": self._gru,
            "RNN": self._rnn,
        }
        h, c = rules[node.op_type](x, h)
        # Y (1, 1, B, H), or (B, 1, 1, H); Y_h and Y_c (1, B, H), or (B, 1, H)
        y_axes = g.ints(1, 2) if self._axis else g.ints(0, 1)
        for place, value, axes in (
            (0, h, y_axes),
            (1, h, g.ints(self._axis)),
            (2, c, g.ints(self._axis)),
        ):
            if place < len(node.output) and node.output[place]:
                g.nodes.append(helper.make_node("Unsqueeze", [value, axes], [node.output[place]]))

    def _state(self, place: int) -> str:
        """(B, H); empty where it starts from zero."""
        name = _input(self._node, place)
        return self._g.one("Squeeze", name, self._g.ints(self._axis)) if name else ""

    def _affine(self, x: str, h: str, rows: slice, bias: Array) -> str:
        """x @ W.T + h @ R.T + bias, of some rows."""
        g = self._g
        z = g.one("MatMul", x, g.constant(self._weights["W"][rows].T, "W"))
        if h:
            recurrent = g.one("MatMul", h, g.constant(self._weights["R"][rows].T, "R"))
            z = g.one("Add", z, recurrent)
        return g.one("Add", z, g.constant(bias[rows], "B"))

    def _split(self, z: str, blocks: int) -> list[str]:
        g = self._g
        return g.node("Split", [z, g.ints(*[self._size] * blocks)], outputs=blocks, axis=1)

    def _peephole(self, z: str, c: str, block: int) -> str:
        if "P" not in self._weights or not c:
            return z
        weight = np.split(self._weights["P"], 3)[block]
        return self._g.one("Add", z, self._g.one("Mul", c, self._g.constant(weight, "P")))

    def _lstm(self, x: str, h: str) -> tuple[str, str]:
        g, c = self._g, self._state(6)
        z_i, z_o, z_f, z_c = self._split(
            self._affine(x, h, slice(None), self._wb + self._rb), blocks=4
        )
        i = g.one("Sigmoid", self._peephole(z_i, c, 0))
        new = g.one("Mul", i, g.one("Tanh", z_c))
        if c:
            f = g.one("Sigmoid", self._peephole(z_f, c, 2))
            new = g.one("Add", g.one("Mul", f, c), new)
        o = g.one("Sigmoid", self._peephole(z_o, new, 1))
        return g.one("Mul", o, g.one("Tanh", new)), new

    def _gru(self, x: str, h: str) -> tuple[str, str]:
        g, size = self._g, self._size
        gates, candidate = slice(0, 2 * size), slice(2 * size, None)
        z, r = self._split(
            g.one("Sigmoid", self._affine(x, h, gates, self._wb + self._rb)), blocks=2
        )
        recurrent = g.constant(self._weights["R"][candidate].T, "R")
        bias = g.constant(self._rb[candidate], "B")
        n = g.one("MatMul", x, g.constant(self._weights["W"][candidate].T, "W"))
        n = g.one("Add", n, g.constant(self._wb[candidate], "B"))
        if self._given.get("linear_before_reset"):
            inner = g.one("Add", g.one("MatMul", h, recurrent), bias) if h else bias
            n = g.one("Add", n, g.one("Mul", r, inner))
        else:
            n = g.one("Add", n, bias)
            if h:
                n = g.one("Add", n, g.one("MatMul", g.one("Mul", r, h), recurrent))
        one = g.constant(np.ones((), self._wb.dtype), "one")
        new = g.one("Mul", g.one("Sub", one, z), g.one("Tanh", n))
        return (g.one("Add", new, g.one("Mul", z, h)) if h else new), ""

    def _rnn(self, x: str, h: str) -> tuple[str, str]:
        return self._g.one("Tanh", self._affine(x, h, slice(None), self._wb + self._rb)), ""
