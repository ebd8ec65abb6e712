"""The graphs of a network whose recurrence is all cells in float: one LSTM or GRU node a cell.

A plain RNN is written as a GRU node too, one whose z is 0 and whose r is 1 exactly: ONNX Runtime's
RNN (1.32) gives a row other bits in a batch than alone, and other bits in a chunk than step by
step; its LSTM and GRU do not. At hidden 32 both take some 0.6 us a step.

A rowwise variant whose cells are all in float or have int8 weights alone takes this road too: 50
steps of two layers of 64 at batch 1 took 152 us, in a Scan 1,171 us.

Inside, sequences are (T, B, F), as the operator wants them. A row whose length is 0 keeps its
state, and y past a row's length is zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from export.algebra.cells import (
    HARD_SIGMOID,
    SIGMOID,
    TANH,
    Activation,
    Cell,
    GruCell,
    LstmCell,
    RnnCell,
    StateSlice,
)
from export.algebra.form import Root
from export.algebra.network import Network
from export.errors import LoweringError
from export.graphs.graph_builder import (
    GraphBuilder,
    finish_states,
    finish_step,
    join_pieces,
    port_infos,
    start_states,
    step_infos,
    take_slice,
)
from export.graphs.step_graph import Block, Products, input_layer, recurrent_layer
from export.lowered import Graphs
from service.manifest import Port, Ports

Array = np.ndarray
LSTM_GATES = (0, 3, 1, 2)  # i, o, f, g of our i, f, g, o
PEEPHOLES = (0, 2, 1)  # i, o, f of our i, f, o
ACTIVATIONS = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "thresholded_relu": "ThresholdedRelu",
    "softplus": "Softplus",
    "softsign": "Softsign",
}


def fits_nodes(network: Network) -> bool:
    """Whether nodes say it all: they give h of every step, but c of the last one only."""
    of_one_step = {f"{cell.name}.c" for cell in network.cells} | set(network.states)
    return not network.free and not network.sources & of_one_step


def write_cell_graphs(network: Network, ports: Ports, products: Products) -> Graphs:
    """The chunk graph and the step graph of the same nodes, the cells in float32.

    The step graph has no lengths to mind: half of the nodes.
    """
    return write_cell_chunk(network, ports, products), _step_graph(network, ports, products)


def write_cell_chunk(
    network: Network, ports: Ports, products: Products, bias_first: bool = False
) -> onnx.ModelProto:
    """The chunk graph.

    Args:
        bias_first: the bias is added where x is multiplied, and not after h is: it stands beside
            the weights of x, and x has a column of ones.
    """
    g = GraphBuilder()
    sequence = "x"
    if len(ports.x.shape) != 3:
        sequence = g.one("Reshape", "x", g.ints(0, 0, network.x_size))
    x = g.one("Transpose", sequence, perm=[1, 0, 2])
    flat = start_states(g, ports, _shapes(network))
    lengths = g.one("Cast", "lengths", to=TensorProto.INT32)
    y, new = _Layers(g, network, products, flat, lengths, bias_first).write(x)
    _finish_y(g, g.one("Transpose", y, perm=[1, 0, 2]), ports.y)
    started = g.one("Unsqueeze", g.one("Greater", "lengths", g.ints(0)), g.ints(1))  # (B, 1)
    kept = {port: g.one("Where", started, new[port], flat[port]) for port in new}
    finish_states(g, kept, ports, _shapes(network))
    return g.model(*port_infos(ports))


def _step_graph(network: Network, ports: Ports, products: Products) -> onnx.ModelProto:
    g = GraphBuilder()
    x = g.one("Unsqueeze", "x", g.ints(0))  # (1, B, I)
    flat = {s.name: s.input for s in ports.states}
    y, new = _Layers(g, network, products, flat, "").write(x)
    finish_step(g, g.one("Squeeze", y, g.ints(0)), new, ports)
    sizes = (network.x_size,), (network.y.size,)
    return g.model(*step_infos(ports, *sizes, _shapes(network)))


def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
    return {port: (size,) for port, size in network.states.items()}


@dataclass
class _Layers:
    """All nodes over x (T, B, I), appended to one graph."""

    g: GraphBuilder
    network: Network
    products: Products
    flat: Mapping[str, str]  # port -> its state (B, n) before the first step
    lengths: str
    bias_first: bool = False

    def write(self, x: str) -> tuple[str, dict[str, str]]:
        """y (T, B, O) and each new flat state (B, n)."""
        g, values = self.g, {"x": x}
        pieces: dict[tuple[str, int], str] = {}
        for node in self.network.nodes:
            if isinstance(node, Root):
                if node.fn == "embedding":
                    values[node.name] = g.embedding(node, x, leading=2)
                    continue
                arguments = [
                    self.products.affine(g, arg, values, f"{node.name}.{k}")
                    for k, arg in enumerate(node.args)
                ]
                values[node.name] = g.pointwise(node, arguments)
                continue
            sequence, *last = self._cell(node, values)
            values[f"{node.name}.h"] = sequence
            for place, value in zip(node.slices.values(), last, strict=True):
                pieces[place.port, place.start] = value
        y = self.products.affine(g, self.network.y, values, "y")
        return y, join_pieces(g, pieces, self.flat)

    def _cell(self, cell: Cell, values: Mapping[str, str]) -> list[str]:
        """One node: h of every step (T, B, H), and the last h (and c) (B, H)."""
        g, sources = self.g, list(cell.input.blocks)
        if not sources:
            raise LoweringError(f"`{cell.name}` has no input; it runs the same for every session")
        names = [values[source] for source in sources]
        x = names[0] if len(names) == 1 else g.one("Concat", *names, axis=2)
        w = np.concatenate([cell.input.blocks[source] for source in sources], axis=1)
        states = self.network.states
        start = [_initial(g, s, self.flat, states) for s in cell.slices.values()]
        op, (w, r, b), peepholes, attributes = _operator(cell, w)
        ends = np.cumsum([cell.input.blocks[source].shape[1] for source in sources])[:-1]
        columns = zip(sources, np.split(w, ends, axis=1), strict=True)
        inside = [Block(source, input_layer(cell), matrix) for source, matrix in columns]
        if self.bias_first:
            x = with_ones(g, x, 3)
            inside.append(Block("ones", input_layer(cell), b[: len(w), None]))
            b = np.zeros_like(b)  # left out, the node takes 1.1 times as long
        own = [Block(cell.own_h, recurrent_layer(cell), r)]
        weights = [
            self.products.cell_matrix(g, inside, f"{cell.name}_W"),
            self.products.cell_matrix(g, own, f"{cell.name}_R"),
            g.constant(b[None].astype(np.float32), f"{cell.name}_B"),
        ]
        inputs = [x, *weights, self.lengths, *start]
        if peepholes is not None:
            inputs.append(g.constant(peepholes[None].astype(np.float32), f"{cell.name}_P"))
        y, *last = g.node(
            op, inputs, 1 + len(start), cell.name, hidden_size=cell.hidden_size, **attributes
        )
        return [g.one("Squeeze", y, g.ints(1)), *(g.one("Squeeze", v, g.ints(0)) for v in last)]


def with_ones(g: GraphBuilder, value: str, rank: int) -> str:
    """A column of ones to the right of a value (.., n) of this rank."""
    ends = [0] * (2 * rank - 1) + [1]
    return g.shared("Pad", value, g.ints(*ends), g.constant(np.array(1, np.float32), "one"))


def _operator(
    cell: Cell, w: Array
) -> tuple[str, tuple[Array, Array, Array], Array | None, dict[str, object]]:
    """Which operator computes a cell of input matrix w: its W, R, B, its P, its attributes."""
    size, bias = cell.hidden_size, cell.input.bias
    inner = np.zeros_like(bias)
    if isinstance(cell, LstmCell):
        peepholes = None if cell.peepholes is None else cell.peepholes[[*PEEPHOLES]].ravel()
        w, r, bias = (_gates(rows, LSTM_GATES) for rows in (w, cell.recurrent, bias))
        attributes = _activations(cell.activations, (SIGMOID, TANH, TANH))
        return "LSTM", (w, r, np.concatenate([bias, inner])), peepholes, attributes
    if isinstance(cell, GruCell):
        attributes = _activations(cell.activations, (SIGMOID, TANH))
        attributes["linear_before_reset"] = int(cell.reset_bias is not None)
        if cell.reset_bias is not None:
            inner[2 * size :] = cell.reset_bias
        return "GRU", (w, cell.recurrent, np.concatenate([bias, inner])), None, attributes
    if isinstance(cell, RnnCell):
        nothing = np.zeros((2 * size, w.shape[1])), np.zeros((2 * size, size))
        w, r = (np.concatenate(pair) for pair in zip(nothing, (w, cell.recurrent), strict=True))
        b = np.concatenate([np.zeros(size), np.ones(size), bias, np.zeros(3 * size)])
        attributes = _activations((HARD_SIGMOID, cell.activation), (SIGMOID, TANH))
        return "GRU", (w, r, b), None, attributes
    raise LoweringError(f"no operator computes {cell.road}")


def _activations(
    activations: tuple[Activation, ...], default: tuple[Activation, ...]
) -> dict[str, object]:
    """The operator's attributes for activations that are not its own."""
    if activations == default:
        return {}
    names: list[str] = []
    numbers: dict[str, list[float]] = {"activation_alpha": [], "activation_beta": []}
    for activation in activations:
        name, alpha_beta = _onnx_activation(activation)
        names.append(name)
        for values, value in zip(numbers.values(), alpha_beta, strict=False):
            values.append(value)
    return {"activations": names, **{key: values for key, values in numbers.items() if values}}


def _onnx_activation(activation: Activation) -> tuple[str, tuple[float, ...]]:
    """ONNX's name of it, and its alpha and beta, in this order, where it takes them."""
    if activation == HARD_SIGMOID:
        return "HardSigmoid", (1.0, 0.0)
    if activation.function == "linear":
        return "Affine", (activation.scale, 0.0)
    if activation.function == "tanh" and activation.scale != 1:
        return "ScaledTanh", (activation.scale, 1.0)
    if activation.function not in ACTIVATIONS or activation.scale != 1:
        raise LoweringError(f"no recurrent operator takes the activation {activation}")
    return ACTIVATIONS[activation.function], activation.constants


def _gates(rows: Array, order: tuple[int, ...]) -> Array:
    gates = np.split(rows, len(order))
    return np.concatenate([gates[k] for k in order])


def _initial(
    g: GraphBuilder, s: StateSlice, flat: Mapping[str, str], sizes: Mapping[str, int]
) -> str:
    return g.one("Unsqueeze", take_slice(g, s, flat[s.port], sizes[s.port]), g.ints(0))


def _finish_y(g: GraphBuilder, y: str, port: Port) -> None:
    """Zero y past each row's length, and give it the port's shape."""
    steps = g.one("Squeeze", g.one("Shape", "x", start=1, end=2), g.ints(0))
    zero, one = (g.constant(np.array(n, np.int64), "int") for n in (0, 1))
    times = g.one("Unsqueeze", g.one("Range", zero, steps, one), g.ints(0))  # (1, T)
    live = g.one("Less", times, g.one("Unsqueeze", "lengths", g.ints(1)))  # (B, T)
    nothing = g.constant(np.zeros((), np.float32), "zero")
    y = g.one("Where", g.one("Unsqueeze", live, g.ints(2)), y, nothing)
    if len(port.shape) != 3:
        y = g.one("Reshape", y, g.ints(0, 0, *(int(d) for d in port.shape[2:])))
    g.name(y, "y")
