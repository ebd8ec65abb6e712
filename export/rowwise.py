"""Row-isolated int8: the step graph in which no row's scale depends on another row.

An LSTM's h lies in (-1, 1), so its scale is the constant 1/127, whatever is in the batch (stock
dynamic quantization takes one scale from the greatest value of the whole matrix). Weights are
int8 with a scale per output column. x stays in float: it is unbounded, and mostly narrow.

Weights are stored as uint8 with zero point 128: on x86 without VNNI the faster uint8 x int8
kernels add pairs of products in saturating 16 bits, and were measured here to be off by 0.1.

How it works: a step graph of plain operators; the chunk graph is a Scan over its body, so both
give the same bits.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.form import Affine, Root
from export.network import LstmCell, Network
from export.onnx_graph import (
    MICROSOFT,
    GraphBuilder,
    flat_size,
    join_pieces,
    port_infos,
    take_slice,
)
from service.artifact import Ports

Array = np.ndarray
H_SCALE = 1 / 127  # h in [-1, 1] <-> uint8 1..255
ZERO_POINT = 128
WEIGHT_LEVELS = 127
MIN_INT8_OUTPUTS = 32  # a narrower product is too small for int8 to gain anything


def quantize_columns(matrix: Array) -> tuple[Array, Array]:
    """Symmetric int8 with one scale per output.

    Args:
        matrix: (n_out, n_in) float64.
    Returns:
        (n_in, n_out) uint8 with zero point 128, and the scales (n_out,) float32.
    """
    peak = np.abs(matrix).max(axis=1)
    scale = np.where(peak > 0, peak / WEIGHT_LEVELS, 1.0)
    levels = np.rint(matrix / scale[:, None]) + ZERO_POINT
    return np.ascontiguousarray(levels.T.astype(np.uint8)), scale.astype(np.float32)


def write_rowwise_graphs(network: Network, ports: Ports) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The chunk graph and the step graph."""
    return _chunk_graph(network, ports), _step_graph(network, ports)


class _Body:
    """One step on flat values: x (B, I), each state (B, n) -> y (B, O), each new state."""

    def __init__(self, g: GraphBuilder, network: Network, bounded: set[str]) -> None:
        self._g = g
        self._network = network
        self._bounded = bounded
        self._quantized: dict[tuple[str, ...], str] = {}

    def write(self, x: str, states: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        g = self._g
        values = {"x": x}
        pieces: dict[tuple[str, int], str] = {}
        for node in self._network.nodes:
            if isinstance(node, Root):
                arguments = [self._affine(arg, values) for arg in node.args]
                values[node.name] = g.pointwise(node, arguments)
                continue
            h, c = self._cell(node, values, states)
            values |= {f"{node.name}.h": h, f"{node.name}.c": c}
            pieces[node.h.port, node.h.start] = h
            pieces[node.c.port, node.c.start] = c
        return self._affine(self._network.y, values), join_pieces(g, pieces, states)

    def _cell(
        self, cell: LstmCell, values: Mapping[str, str], states: Mapping[str, str]
    ) -> tuple[str, str]:
        g = self._g
        sizes = self._network.states
        h, c = (take_slice(g, s, states[s.port], sizes[s.port]) for s in (cell.h, cell.c))
        blocks = {**cell.input.blocks, "h": cell.recurrent}
        i, f, g_, o = np.split(np.arange(4 * cell.hidden_size), 4)
        order = np.concatenate([i, f, o, g_])  # the three sigmoids side by side
        gates = Affine({s: m[order] for s, m in blocks.items()}, cell.input.bias[order])
        z = self._product(gates, {**values, "h": h}, self._bounded | {"h"})
        size = cell.hidden_size
        z_sigmoid, z_tanh = g.node("Split", [z, g.ints(3 * size, size)], outputs=2, axis=1)
        sigmoids = g.one("Sigmoid", z_sigmoid)
        i_, f_, o_ = g.node("Split", [sigmoids, g.ints(size, size, size)], outputs=3, axis=1)
        candidate = g.one("Tanh", z_tanh)
        new_c = g.one("Add", g.one("Mul", f_, c), g.one("Mul", i_, candidate))
        return g.one("Mul", o_, g.one("Tanh", new_c)), new_c

    def _affine(self, affine: Affine, values: Mapping[str, str]) -> str:
        if affine.size < MIN_INT8_OUTPUTS:
            return self._g.affine(affine, values)
        return self._product(affine, values, self._bounded)

    def _product(self, affine: Affine, values: Mapping[str, str], bounded: set[str]) -> str:
        """The affine map: bounded sources in int8 by one product, the others in float."""
        g = self._g
        inside = [source for source in affine.blocks if source in bounded]
        outside = {s: m for s, m in affine.blocks.items() if s not in bounded}
        if not inside:
            return g.affine(affine, values)
        weight, scale = quantize_columns(
            np.concatenate([affine.blocks[source] for source in inside], axis=1)
        )
        total = g.one(
            "MatMulIntegerToFloat",
            self._quantize([values[source] for source in inside]),
            g.constant(weight, "weight_u8"),
            g.constant(np.array(H_SCALE, np.float32), "h_scale"),
            g.constant(scale, "weight_scale"),
            g.constant(np.array(ZERO_POINT, np.uint8), "zero_point"),
            g.constant(np.full(affine.size, ZERO_POINT, np.uint8), "zero_points"),
            g.constant(affine.bias.astype(np.float32), "bias"),
            domain=MICROSOFT,
        )
        if outside:
            rest = g.affine(Affine(outside, np.zeros(affine.size)), values)
            total = g.one("Add", total, rest)
        return total

    def _quantize(self, names: list[str]) -> str:
        g = self._g
        whole = names[0] if len(names) == 1 else g.one("Concat", *names, axis=1)
        key = tuple(names)
        if key not in self._quantized:
            self._quantized[key] = g.one(
                "QuantizeLinear",
                whole,
                g.constant(np.array(H_SCALE, np.float32), "h_scale"),
                g.constant(np.array(ZERO_POINT, np.uint8), "zero_point"),
            )
        return self._quantized[key]


def bounded_sources(network: Network) -> set[str]:
    """The sources that lie in [-1, 1] whatever the input: every h, sigmoid and tanh."""
    found = {f"{cell.name}.h" for cell in network.cells}
    roots = (node for node in network.nodes if isinstance(node, Root))
    return found | {root.name for root in roots if root.fn in ("sigmoid", "tanh")}


def _step_graph(network: Network, ports: Ports) -> onnx.ModelProto:
    g = GraphBuilder()
    x = g.one("Reshape", "x", g.ints(-1, flat_size(ports.x, 2)))
    flat = {
        s.name: g.one("Reshape", s.input, g.ints(-1, network.states[s.name])) for s in ports.states
    }
    y, new = _Body(g, network, bounded_sources(network)).write(x, flat)
    g.name(g.one("Reshape", y, g.ints(-1, 1, *(int(d) for d in ports.y.shape[2:]))), "y")
    for s in ports.states:
        g.name(g.one("Reshape", new[s.name], g.ints(-1, *(int(d) for d in s.shape[1:]))), s.output)
    return g.model(*port_infos(ports, 1))


def _chunk_graph(network: Network, ports: Ports) -> onnx.ModelProto:
    g = GraphBuilder()
    body = _scan_body(g, network)
    x = "x" if len(ports.x.shape) == 3 else g.one("Reshape", "x", g.ints(0, 0, network.x_size))
    steps = g.one("Squeeze", g.one("Shape", "x", start=1, end=2), g.ints(0))
    zero, one = (g.constant(np.array(n, np.int64), "int") for n in (0, 1))
    times = g.one("Range", zero, steps, one)
    flat = [g.one("Reshape", s.input, g.ints(-1, network.states[s.name])) for s in ports.states]
    lengths = helper.make_node("Unsqueeze", ["lengths", g.ints(1)], ["lengths_column"])
    g.nodes.append(lengths)
    *new, y = g.node(
        "Scan",
        [*flat, times, x],
        outputs=len(flat) + 1,
        body=body,
        num_scan_inputs=2,
        scan_input_axes=[0, 1],
        scan_output_axes=[1],
    )
    if len(ports.y.shape) != 3:
        y = g.one("Reshape", y, g.ints(0, 0, *(int(d) for d in ports.y.shape[2:])))
    g.name(y, "y")
    for s, value in zip(ports.states, new, strict=True):
        g.name(g.one("Reshape", value, g.ints(-1, *(int(d) for d in s.shape[1:]))), s.output)
    return g.model(*port_infos(ports, "T"))


def _scan_body(g: GraphBuilder, network: Network) -> onnx.GraphProto:
    """One step of the Scan: states, t, x_t -> states', y_t; rows past their length stand still."""
    outer, g.nodes = g.nodes, []
    states = {port: f"{port}_in" for port in network.states}
    y, new = _Body(g, network, bounded_sources(network)).write("x_t", states)
    live = g.one("Less", "t", "lengths_column")  # (B, 1)
    for port in states:
        g.nodes.append(helper.make_node("Where", [live, new[port], states[port]], [f"{port}_out"]))
    nothing = g.constant(np.zeros((), np.float32), "zero")
    g.nodes.append(helper.make_node("Where", [live, y, nothing], ["y_t"]))
    nodes, g.nodes = g.nodes, outer

    def info(name: str, size: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", size])

    sizes = network.states
    inputs = [info(f"{port}_in", sizes[port]) for port in states]
    inputs += [
        helper.make_tensor_value_info("t", TensorProto.INT64, []),
        info("x_t", network.x_size),
    ]
    outputs = [info(f"{port}_out", sizes[port]) for port in states] + [info("y_t", network.y.size)]
    return helper.make_graph(nodes, "step", inputs, outputs)
