"""The float graphs of a network whose recurrence is all LSTM: one LSTM node a cell.

Inside, sequences are (T, B, F), as the operator wants them. A row whose length is 0 keeps its
state, and y past a row's length is zero.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto

from export.errors import LoweringError
from export.form import Root
from export.graph_builder import GraphBuilder, finish_states, join_pieces, port_infos, take_slice
from export.network import LstmCell, Network, StateSlice
from service.manifest import Port, Ports

Array = np.ndarray
ONNX_GATES = (0, 3, 1, 2)  # i, o, f, g of our i, f, g, o


def fits_lstm_nodes(network: Network) -> bool:
    """Whether LSTM nodes say it all: they give h of every step, but c of the last one only."""
    of_one_step = {f"{cell.name}.c" for cell in network.cells} | set(network.states)
    return not network.free and not network.sources & of_one_step


def write_lstm_graphs(network: Network, ports: Ports) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The chunk graph and the step graph, in float32, of the same LSTM nodes.

    The step graph has no lengths to mind: half of the nodes.
    """
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
    finish_states(g, kept, ports)
    return g.model(*port_infos(ports, "T"))


def _step_graph(network: Network, ports: Ports) -> onnx.ModelProto:
    g = GraphBuilder()
    x = g.one("Reshape", "x", g.ints(1, -1, network.x_size))  # one step: (B, 1, I) as (1, B, I)
    y, new = _layers(g, network, x, _flat_states(g, network, ports), "")
    g.name(g.one("Reshape", y, g.ints(-1, 1, *(int(d) for d in ports.y.shape[2:]))), "y")
    finish_states(g, new, ports)
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
            if node.fn == "embedding":
                values[node.name] = g.embedding(node, x, leading=2)
                continue
            arguments = [g.affine(arg, values) for arg in node.args]
            values[node.name] = g.pointwise(node, arguments)
            continue
        sequence, h, c = _lstm(g, node, values, lengths, flat, network)
        values[f"{node.name}.h"] = sequence
        pieces[node.h.port, node.h.start] = h
        pieces[node.c.port, node.c.start] = c
    return g.affine(network.y, values), join_pieces(g, pieces, flat)


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
