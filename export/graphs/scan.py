"""The two graphs of a step: the step alone, and a Scan of it over a chunk with lengths.

The step alone takes and gives values in the shapes that it computes with, batch first, which are
often flatter than the ports: a Reshape is a copy, and at batch 1 a node takes 0.3 us of 7.

Both hold the same operators, so they give the same bits. In the Scan a row past its length stands
still: its states stay as they are, and its y is zero. What is constant stands outside, once.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.graphs.graph_builder import (
    ELEMENT_TYPES,
    GraphBuilder,
    finish_states,
    finish_step,
    port_infos,
    start_states,
    step_infos,
)
from export.lowered import Graphs
from service.manifest import Ports

Shape = tuple[int, ...]
LENGTHS = "lengths_column"  # (B, 1)


class Step(Protocol):
    """One step as nodes, on values of shapes of its own: those of the ports, or flat ones.

    All shapes are without the batch, and without the time.
    """

    @property
    def x_shape(self) -> Shape: ...

    @property
    def y_shape(self) -> Shape: ...

    @property
    def state_shapes(self) -> Mapping[str, Shape]: ...

    def write(
        self, g: GraphBuilder, x: str, states: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        """Append the nodes: x (B, ...), each state (B, ...) -> y (B, ...), each new state."""
        ...


def write_graphs(step: Step, ports: Ports) -> Graphs:
    """The chunk graph and the step graph."""
    return _chunk_graph(step, ports), write_step_graph(step, ports)


def write_step_graph(step: Step, ports: Ports) -> onnx.ModelProto:
    """The step alone."""
    g = GraphBuilder()
    y, new = step.write(g, "x", {s.name: s.input for s in ports.states})
    finish_step(g, y, new, ports)
    return g.model(*step_infos(ports, step.x_shape, step.y_shape, step.state_shapes))


def _chunk_graph(step: Step, ports: Ports) -> onnx.ModelProto:
    g = GraphBuilder()
    body = _scan_body(g, step, ports)
    x = "x" if _inner(ports.x.shape) == step.x_shape else _with_time(g, "x", step.x_shape)
    steps = g.one("Squeeze", g.one("Shape", "x", start=1, end=2), g.ints(0))
    zero, one = (g.constant(np.array(n, np.int64), "int") for n in (0, 1))
    times = g.one("Range", zero, steps, one)
    states = start_states(g, ports, step.state_shapes)
    for rank in sorted({2, *_ranks(step)}):
        node = helper.make_node(
            "Reshape", ["lengths", g.ints(-1, *[1] * (rank - 1))], [_live(rank)]
        )
        g.nodes.append(node)
    *new, y = g.node(
        "Scan",
        [*states.values(), times, x],
        outputs=len(states) + 1,
        body=body,
        num_scan_inputs=2,
        scan_input_axes=[0, 1],
        scan_output_axes=[1],
    )
    if _inner(ports.y.shape) != step.y_shape:
        y = _with_time(g, y, _inner(ports.y.shape))
    g.name(y, "y")
    finish_states(g, dict(zip(states, new, strict=True)), ports, step.state_shapes)
    return g.model(*port_infos(ports))


def _scan_body(g: GraphBuilder, step: Step, ports: Ports) -> onnx.GraphProto:
    """One step of the Scan: states, t, x_t -> states', y_t; rows past their length stand still."""
    outer, g.nodes = g.nodes, []
    shapes = step.state_shapes
    states = {port: f"{port}_in" for port in shapes}
    y, new = step.write(g, "x_t", states)
    live = {rank: g.one("Less", "t", _live(rank)) for rank in sorted(_ranks(step))}
    for port, shape in shapes.items():
        kept = [live[1 + len(shape)], new[port], states[port]]
        g.nodes.append(helper.make_node("Where", kept, [f"{port}_out"]))
    nothing = g.constant(np.zeros((), np.float32), "zero")
    g.nodes.append(helper.make_node("Where", [live[1 + len(step.y_shape)], y, nothing], ["y_t"]))
    nodes, g.nodes = g.nodes, outer

    def info(name: str, shape: Shape, kind: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["B", *shape])

    kinds = {s.name: ELEMENT_TYPES[s.dtype] for s in ports.states}
    inputs = [info(f"{port}_in", shape, kinds[port]) for port, shape in shapes.items()]
    inputs += [
        helper.make_tensor_value_info("t", TensorProto.INT64, []),
        info("x_t", step.x_shape, ELEMENT_TYPES[ports.x.dtype]),
    ]
    outputs = [info(f"{port}_out", shape, kinds[port]) for port, shape in shapes.items()]
    outputs.append(info("y_t", step.y_shape, TensorProto.FLOAT))
    return helper.make_graph(nodes, "step", inputs, outputs)


def _with_time(g: GraphBuilder, value: str, shape: Shape) -> str:
    return g.one("Reshape", value, g.ints(0, 0, *shape))


def _inner(shape: list[str | int]) -> Shape:
    return tuple(int(dim) for dim in shape[2:])


def _ranks(step: Step) -> set[int]:
    return {1 + len(shape) for shape in (step.y_shape, *step.state_shapes.values())}


def _live(rank: int) -> str:
    return f"lengths_{rank}"
