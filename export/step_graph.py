"""A network as plain operators: the step graph, and the chunk graph as a Scan over it.

The two share every operator, so they give the same bits. Which of the products are int8 is the
`Products` object's choice (see `rowwise`); here all is float32 if it says nothing else.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.form import Affine, Root
from export.graph_builder import (
    GraphBuilder,
    finish_states,
    flat_size,
    join_pieces,
    port_infos,
    take_slice,
)
from export.network import LstmCell, Network
from service.manifest import Ports

Array = np.ndarray
OWN_H = "own h"  # the source name of a cell's h from before the step


class Products:
    """How affine maps are computed: in float32."""

    def affine(self, g: GraphBuilder, affine: Affine, values: Mapping[str, str]) -> str:
        """The affine map of flat values (B, n)."""
        return g.affine(affine, values)


def write_step_graphs(
    network: Network, ports: Ports, products: Products
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The chunk graph and the step graph."""
    return _chunk_graph(network, ports, products), _step_graph(network, ports, products)


class _Body:
    """One step on flat values: x (B, I), each state (B, n) -> y (B, O), each new state."""

    def __init__(self, g: GraphBuilder, network: Network, products: Products) -> None:
        self._g = g
        self._network = network
        self._products = products

    def write(self, x: str, states: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        values = {"x": x, **states}
        pieces: dict[tuple[str, int], str] = {}
        for node in self._network.nodes:
            if isinstance(node, Root) and node.fn == "embedding":
                values[node.name] = self._g.embedding(node, x, leading=1)
                continue
            if isinstance(node, Root):
                arguments = [self._affine(arg, values) for arg in node.args]
                values[node.name] = self._g.pointwise(node, arguments)
                continue
            h, c = self._cell(node, values, states)
            values |= {f"{node.name}.h": h, f"{node.name}.c": c}
            pieces[node.h.port, node.h.start] = h
            pieces[node.c.port, node.c.start] = c
        free = self._network.free
        new = join_pieces(self._g, pieces, [port for port in states if port not in free])
        new |= {port: self._affine(affine, values) for port, affine in free.items()}
        return self._affine(self._network.y, values), new

    def _affine(self, affine: Affine, values: Mapping[str, str]) -> str:
        return self._products.affine(self._g, affine, values)

    def _cell(
        self, cell: LstmCell, values: Mapping[str, str], states: Mapping[str, str]
    ) -> tuple[str, str]:
        g = self._g
        sizes = self._network.states
        h, c = (take_slice(g, s, states[s.port], sizes[s.port]) for s in (cell.h, cell.c))
        blocks = {**cell.input.blocks, OWN_H: cell.recurrent}
        i, f, g_, o = np.split(np.arange(4 * cell.hidden_size), 4)
        order = np.concatenate([i, f, o, g_])  # the three sigmoids side by side
        gates = Affine({s: m[order] for s, m in blocks.items()}, cell.input.bias[order])
        z = self._products.affine(g, gates, {**values, OWN_H: h})
        size = cell.hidden_size
        z_sigmoid, z_tanh = g.node("Split", [z, g.ints(3 * size, size)], outputs=2, axis=1)
        sigmoids = g.one("Sigmoid", z_sigmoid)
        i_, f_, o_ = g.node("Split", [sigmoids, g.ints(size, size, size)], outputs=3, axis=1)
        candidate = g.one("Tanh", z_tanh)
        new_c = g.one("Add", g.one("Mul", f_, c), g.one("Mul", i_, candidate))
        return g.one("Mul", o_, g.one("Tanh", new_c)), new_c


def _step_graph(network: Network, ports: Ports, products: Products) -> onnx.ModelProto:
    g = GraphBuilder()
    x = g.one("Reshape", "x", g.ints(-1, flat_size(ports.x, 2)))
    flat = {
        s.name: g.one("Reshape", s.input, g.ints(-1, network.states[s.name])) for s in ports.states
    }
    y, new = _Body(g, network, products).write(x, flat)
    g.name(g.one("Reshape", y, g.ints(-1, 1, *(int(d) for d in ports.y.shape[2:]))), "y")
    finish_states(g, new, ports)
    return g.model(*port_infos(ports, 1))


def _chunk_graph(network: Network, ports: Ports, products: Products) -> onnx.ModelProto:
    g = GraphBuilder()
    body = _scan_body(g, network, products)
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
    finish_states(g, {s.name: value for s, value in zip(ports.states, new, strict=True)}, ports)
    return g.model(*port_infos(ports, "T"))


def _scan_body(g: GraphBuilder, network: Network, products: Products) -> onnx.GraphProto:
    """One step of the Scan: states, t, x_t -> states', y_t; rows past their length stand still."""
    outer, g.nodes = g.nodes, []
    states = {port: f"{port}_in" for port in network.states}
    y, new = _Body(g, network, products).write("x_t", states)
    live = g.one("Less", "t", "lengths_column")  # (B, 1)
    for port in states:
        g.nodes.append(helper.make_node("Where", [live, new[port], states[port]], [f"{port}_out"]))
    nothing = g.constant(np.zeros((), np.float32), "zero")
    g.nodes.append(helper.make_node("Where", [live, y, nothing], ["y_t"]))
    nodes, g.nodes = g.nodes, outer

    def info(name: str, size: int, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["B", size])

    sizes = network.states
    kind_of_x = TensorProto.FLOAT if network.ids is None else TensorProto.INT64
    inputs = [info(f"{port}_in", sizes[port]) for port in states]
    inputs += [
        helper.make_tensor_value_info("t", TensorProto.INT64, []),
        info("x_t", network.x_size, kind_of_x),
    ]
    outputs = [info(f"{port}_out", sizes[port]) for port in states] + [info("y_t", network.y.size)]
    return helper.make_graph(nodes, "step", inputs, outputs)
