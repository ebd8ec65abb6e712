"""The float ONNX graph of a network: one LSTM node a cell, written with `onnx.helper`.

Ports: x (B, T, ...), lengths (B,) int64, `NAME_0` in and `NAME_n` out of each state, y (B, T, ...).
Inside, sequences are (T, B, F), as the LSTM operator wants them. A row whose length is 0 keeps its
state, and y past a row's length is zero.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.errors import LoweringError
from export.form import Affine, Root
from export.network import LstmCell, Network, StateSlice
from service.artifact import Port, Ports

Array = np.ndarray
OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
ONNX_GATES = (0, 3, 1, 2)  # i, o, f, g of our i, f, g, o
ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
POINTWISE_OPS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "mul": "Mul"}


class GraphBuilder:
    """Nodes and initializers under construction; equal constants are stored once."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def fresh(self, hint: str) -> str:
        self._count += 1
        return f"{hint}_{self._count}"

    def constant(self, value: Array, hint: str) -> str:
        key = (str(value.dtype), value.shape, value.tobytes())
        if key not in self._constants:
            name = self.fresh(hint)
            self._constants[key] = name
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64), "ints")

    def node(
        self, op: str, inputs: Sequence[str], outputs: int = 1, hint: str = "", **attributes: Any
    ) -> list[str]:
        """Append a node; an operator that is not ONNX's own is ONNX Runtime's."""
        domain = attributes.pop("domain", "")
        names = [self.fresh(hint or op.lower()) for _ in range(outputs)]
        self.nodes.append(
            helper.make_node(op, list(inputs), names, domain=str(domain), **attributes)
        )
        return names

    def one(self, op: str, *inputs: str, hint: str = "", **attributes: Any) -> str:
        """Append a node of one output and name that."""
        return self.node(op, inputs, hint=hint, **attributes)[0]

    def name(self, value: str, final: str) -> None:
        """Give `value`, which some node computed, the name of an output port."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for k, found in enumerate(names):
                    if found == value:
                        names[k] = final

    def affine(self, affine: Affine, values: Mapping[str, str]) -> str:
        """The affine map of (.., F) values by MatMul and Add, in float32."""
        terms = [
            values[source]
            if _is_identity(matrix)
            else self.one(
                "MatMul", values[source], self.constant(matrix.T.astype(np.float32), "weight")
            )
            for source, matrix in affine.blocks.items()
        ]
        if affine.bias.any() or not terms:
            terms.append(self.constant(affine.bias.astype(np.float32), "bias"))
        total = terms[0]
        for term in terms[1:]:
            total = self.one("Add", total, term)
        return total

    def pointwise(self, root: Root, arguments: Sequence[str]) -> str:
        return self.one(POINTWISE_OPS[root.fn], *arguments)

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The finished, checked model."""
        graph = helper.make_graph(
            self.nodes, "carousel", inputs, outputs, list(self.initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == MICROSOFT for node in _all_nodes(graph)):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="carousel"
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def value_info(name: str, port: Port, steps: str | int = "T") -> onnx.ValueInfoProto:
    """A port as ONNX declares it, its time axis (if it has one) of `steps`."""
    shape = [steps if dim == "T" else dim for dim in port.shape]
    return helper.make_tensor_value_info(name, ELEMENT_TYPES[port.dtype], shape)


def port_infos(
    ports: Ports, steps: str | int
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """The inputs and outputs of a graph over `steps` ("T": any, with lengths)."""
    inputs = [value_info("x", ports.x, steps)]
    if steps == "T":
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT64, ["B"]))
    inputs += [value_info(s.input, s) for s in ports.states]
    outputs = [value_info("y", ports.y, steps)]
    outputs += [value_info(s.output, s) for s in ports.states]
    return inputs, outputs


def flat_size(port: Port, free: int) -> int:
    """Values of a port besides its first `free` axes."""
    return int(np.prod([int(dim) for dim in port.shape[free:]], dtype=np.int64))


def fits_lstm_node(network: Network) -> bool:
    """The LSTM operator gives h of every step, but c of the last one only."""
    wanted = set(network.y.blocks)
    for node in network.nodes:
        for affine in (node.input,) if isinstance(node, LstmCell) else node.args:
            wanted |= set(affine.blocks)
    return not any(f"{cell.name}.c" in wanted for cell in network.cells)


def write_float_graphs(network: Network, ports: Ports) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The chunk graph and the step graph, in float32, of the same LSTM nodes.

    The step graph has no lengths to mind: half of the nodes.

    Raises:
        LoweringError: something looks at c of every step, which the LSTM operator does not give.
    """
    if not fits_lstm_node(network):
        raise LoweringError("a value depends on the cell state c of every step")
    return _chunk_graph(network, ports), _step_graph(network, ports)


def _chunk_graph(network: Network, ports: Ports) -> onnx.ModelProto:
    g = GraphBuilder()
    sequence = "x"
    if len(ports.x.shape) != 3:
        sequence = g.one("Reshape", "x", g.ints(0, 0, network.x_size))
    x = g.one("Transpose", sequence, perm=[1, 0, 2])
    flat = _flat_states(g, network, ports)
    lengths = g.one("Cast", "lengths", to=TensorProto.INT32)
    y, new = _layers(g, network, x, flat, lengths)
    _finish_y(g, g.one("Transpose", y, perm=[1, 0, 2]), ports.y)
    started = g.one("Unsqueeze", g.one("Greater", "lengths", g.ints(0)), g.ints(1))  # (B, 1)
    kept = {port: g.one("Where", started, new[port], flat[port]) for port in new}
    _finish_states(g, kept, ports)
    return g.model(*port_infos(ports, "T"))


def _step_graph(network: Network, ports: Ports) -> onnx.ModelProto:
    g = GraphBuilder()
    x = g.one("Reshape", "x", g.ints(1, -1, network.x_size))  # one step: (B, 1, I) as (1, B, I)
    y, new = _layers(g, network, x, _flat_states(g, network, ports), "")
    g.name(g.one("Reshape", y, g.ints(-1, 1, *(int(d) for d in ports.y.shape[2:]))), "y")
    _finish_states(g, new, ports)
    return g.model(*port_infos(ports, 1))


def _flat_states(g: GraphBuilder, network: Network, ports: Ports) -> dict[str, str]:
    return {
        s.name: g.one("Reshape", s.input, g.ints(-1, network.states[s.name]), hint=f"{s.name}_flat")
        for s in ports.states
    }


def _layers(
    g: GraphBuilder, network: Network, x: str, flat: Mapping[str, str], lengths: str
) -> tuple[str, dict[str, str]]:
    """All nodes over x (T, B, I): y (T, B, O) and each new flat state (B, n)."""
    values = {"x": x}
    pieces: dict[tuple[str, int], str] = {}
    for node in network.nodes:
        if isinstance(node, Root):
            arguments = [g.affine(arg, values) for arg in node.args]
            values[node.name] = g.pointwise(node, arguments)
            continue
        sequence, h, c = _lstm(g, node, values, lengths, flat, network)
        values[f"{node.name}.h"] = sequence
        pieces[node.h.port, node.h.start] = h
        pieces[node.c.port, node.c.start] = c
    return g.affine(network.y, values), join_pieces(g, pieces, flat)


def join_pieces(
    g: GraphBuilder, pieces: Mapping[tuple[str, int], str], ports: Iterable[str]
) -> dict[str, str]:
    """Each port's flat state (B, n) from what its cells left at their places."""
    joined = {}
    for port in ports:
        parts = [pieces[key] for key in sorted(pieces) if key[0] == port]
        joined[port] = parts[0] if len(parts) == 1 else g.one("Concat", *parts, axis=1)
    return joined


def _finish_states(g: GraphBuilder, flat: Mapping[str, str], ports: Ports) -> None:
    for s in ports.states:
        g.name(g.one("Reshape", flat[s.name], g.ints(-1, *(int(d) for d in s.shape[1:]))), s.output)


def _lstm(
    g: GraphBuilder,
    cell: LstmCell,
    values: Mapping[str, str],
    lengths: str,
    flat: Mapping[str, str],
    network: Network,
) -> tuple[str, str, str]:
    """One LSTM node: h of every step (T, B, H), and the last h and c (B, H)."""
    sources = list(cell.input.blocks)
    if not sources:
        raise LoweringError(f"`{cell.name}` has no input; it runs the same for every session")
    names = [values[source] for source in sources]
    x = names[0] if len(names) == 1 else g.one("Concat", *names, axis=2)
    w = np.concatenate([cell.input.blocks[source] for source in sources], axis=1)
    bias = _onnx_order(cell.input.bias[:, None])[:, 0]
    start = [_initial(g, s, flat, network) for s in (cell.h, cell.c)]
    y, h, c = g.node(
        "LSTM",
        [
            x,
            g.constant(_onnx_order(w)[None].astype(np.float32), f"{cell.name}_W"),
            g.constant(_onnx_order(cell.recurrent)[None].astype(np.float32), f"{cell.name}_R"),
            g.constant(
                np.concatenate([bias, np.zeros_like(bias)])[None].astype(np.float32),
                f"{cell.name}_B",
            ),
            lengths,
            *start,
        ],
        outputs=3,
        hint=cell.name,
        hidden_size=cell.hidden_size,
    )
    sequence = g.one("Squeeze", y, g.ints(1))
    return sequence, g.one("Squeeze", h, g.ints(0)), g.one("Squeeze", c, g.ints(0))


def _onnx_order(rows: Array) -> Array:
    """(4H, n) in our order i, f, g, o -> in the operator's i, o, f, g."""
    gates = np.split(rows, 4)
    return np.concatenate([gates[k] for k in ONNX_GATES])


def _initial(g: GraphBuilder, s: StateSlice, flat: Mapping[str, str], network: Network) -> str:
    return g.one("Unsqueeze", take_slice(g, s, flat[s.port], network.states[s.port]), g.ints(0))


def take_slice(g: GraphBuilder, s: StateSlice, flat: str, size: int) -> str:
    """The columns of a flat state (B, n) that a cell holds: (B, H)."""
    if s.stop - s.start == size:
        return flat
    return g.one("Slice", flat, g.ints(s.start), g.ints(s.stop), g.ints(1))


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


def _is_identity(matrix: Array) -> bool:
    return matrix.shape[0] == matrix.shape[1] and bool((matrix == np.eye(len(matrix))).all())


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                nodes += _all_nodes(attribute.g)
    return nodes
