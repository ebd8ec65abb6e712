"""Somebody's ONNX graph of one step in a canonical spelling, to be written into graphs of ours.

Inputs `x` (B, ...) and `NAME_0` (B, ...) of each state; outputs `y` and `NAME_n`.

Canonical: constants are initializers, a Gemm is a MatMul and an Add (what the quantizers know), no
function is left, names count from 0, and nothing tells where the graph was made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.inliner import inline_local_functions

from export.errors import LoweringError
from export.graphs.folding import fold_constants
from export.graphs.graph_builder import GraphBuilder, all_nodes
from export.graphs.scan import Shape

Array = np.ndarray
Renaming = Callable[[str], str]


@dataclass(frozen=True)
class StepModel:
    """Nodes in order, over inputs, constants and each other's outputs."""

    nodes: Sequence[onnx.NodeProto]
    constants: Mapping[str, Array]
    x_shape: Shape
    y_shape: Shape
    state_shapes: Mapping[str, Shape]
    y: str  # the names of the results
    states: Mapping[str, str]
    writer: "Callable[[StepModel], Writer] | None" = (
        None  # how nodes are written; None: as they are
    )

    def write(
        self, g: GraphBuilder, x: str, states: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        return (self.writer or Writer)(self).write(g, x, states)


class Writer:
    """Appends a step model's nodes to a graph under construction, with names of its own there."""

    def __init__(self, model: StepModel) -> None:
        self.model = model

    def write(
        self, g: GraphBuilder, x: str, states: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        names = {"x": x, **{f"{name}_0": value for name, value in states.items()}}
        for node in self.model.nodes:
            self.node(g, node, names)
        y = self.value(g, self.model.y, names)
        new = {name: self.value(g, v, names) for name, v in self.model.states.items()}
        return y, new

    def node(self, g: GraphBuilder, node: onnx.NodeProto, names: dict[str, str]) -> None:
        """Append one node; `names` maps the model's names to those in `g`, and is added to."""
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        _rename(copied, lambda name: self.value(g, name, names), lambda _: g.fresh("inner"))
        for k, name in enumerate(node.output):
            if name:
                names[name] = copied.output[k] = g.fresh(node.op_type.lower())
        g.nodes.append(copied)

    def value(self, g: GraphBuilder, name: str, names: Mapping[str, str]) -> str:
        if name in names:
            return names[name]
        if name in self.model.constants:
            return g.constant(self.model.constants[name], "constant")
        raise LoweringError(f"the step reads `{name}`, which nothing computes")


def read_step_model(model: onnx.ModelProto, states: Sequence[str]) -> StepModel:
    """The canonical step of a model whose ports have our names.

    Raises:
        LoweringError: a port is missing or has another free axis than the batch.
    """
    if model.functions:
        model = inline_local_functions(model)
    model = _copied(model)
    fold_constants(model)  # torch.onnx leaves large ones, as an LSTM's gates, to us
    graph = model.graph
    inputs = {v.name: v for v in graph.input}
    outputs = {v.name: v for v in graph.output}
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Gemm" and not node.domain:
            nodes += _as_product(node, constants)
        else:
            nodes.append(_bare(node))
    return StepModel(
        nodes=nodes,
        constants=constants,
        x_shape=_shape(inputs, "x"),
        y_shape=_shape(outputs, "y"),
        state_shapes={name: _shape(inputs, f"{name}_0") for name in states},
        y="y",
        states={name: f"{name}_n" for name in states},
    )


def as_onnx(model: StepModel, kinds: Mapping[str, int]) -> onnx.ModelProto:
    """The step as a model by itself; `kinds`: the element type of each port."""
    g = GraphBuilder()
    y, new = model.write(g, "x", {name: f"{name}_0" for name in model.states})
    for value, port in ((y, "y"), *((new[name], f"{name}_n") for name in new)):
        g.nodes.append(helper.make_node("Identity", [value], [port]))

    def info(name: str, shape: Shape) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kinds[name], ["B", *shape])

    states = model.state_shapes.items()
    return g.model(
        [info("x", model.x_shape), *(info(f"{n}_0", s) for n, s in states)],
        [info("y", model.y_shape), *(info(f"{n}_n", s) for n, s in states)],
    )


def _shape(ports: Mapping[str, onnx.ValueInfoProto], name: str) -> Shape:
    if name not in ports:
        raise LoweringError(f"the step's graph has no port `{name}`; it has {sorted(ports)}")
    dims = ports[name].type.tensor_type.shape.dim
    if not dims or not all(d.HasField("dim_value") for d in dims[1:]):
        found = [d.dim_param or d.dim_value for d in dims]
        raise LoweringError(f"port `{name}` of the step has shape {found}, expected (batch, sizes)")
    return tuple(d.dim_value for d in dims[1:])


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _bare(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node without what only tells where it came from, its sub-graphs' nodes too."""
    bare = onnx.NodeProto()
    bare.CopyFrom(node)
    holder = onnx.GraphProto(node=[bare])
    for inner in all_nodes(holder):
        inner.ClearField("name")
        inner.ClearField("doc_string")
        del inner.metadata_props[:]
    bare.CopyFrom(holder.node[0])
    return bare


def _as_product(node: onnx.NodeProto, constants: dict[str, Array]) -> list[onnx.NodeProto]:
    """Gemm: alpha * A' @ B' + beta * C."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    a, b = node.input[0], node.input[1]
    nodes = []
    out = node.output[0]
    if given.get("transA"):
        nodes.append(helper.make_node("Transpose", [a], [f"{out}/a"], perm=[1, 0]))
        a = f"{out}/a"
    if b in constants:
        matrix = constants[b].T if given.get("transB") else constants[b]
        constants[f"{out}/b"] = np.ascontiguousarray(matrix * np.float32(given.get("alpha", 1)))
        b = f"{out}/b"
    elif given.get("transB") or given.get("alpha", 1) != 1:
        return [_bare(node)]
    c = node.input[2] if len(node.input) > 2 else ""
    beta = given.get("beta", 1)
    if c and beta != 1:
        constants[f"{out}/beta"] = np.array(beta, np.float32)
        nodes.append(helper.make_node("Mul", [c, f"{out}/beta"], [f"{out}/c"]))
        c = f"{out}/c"
    nodes.append(helper.make_node("MatMul", [a, b], [f"{out}/ab" if c else out]))
    if c:
        nodes.append(helper.make_node("Add", [f"{out}/ab", c], [out]))
    return nodes


def _rename(node: onnx.NodeProto, rename: Renaming, fresh: Renaming) -> None:
    """Rename what a node reads, in its sub-graphs too; what these compute gets fresh names."""
    for k, name in enumerate(node.input):
        if name:
            node.input[k] = rename(name)
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for graph in graphs:
            own = [v.name for v in (*graph.input, *graph.initializer)]
            own += [name for inner in graph.node for name in inner.output if name]
            names = {name: fresh(name) for name in own}
            inside = partial(_inside, names, rename)
            for inner in graph.node:
                _rename(inner, inside, fresh)
                for k, name in enumerate(inner.output):
                    inner.output[k] = names.get(name, "")
            for part in (*graph.input, *graph.initializer, *graph.output):
                part.name = inside(part.name)
            if not {v.name for v in graph.output} <= set(names.values()):
                raise LoweringError("a branch of the step gives a value from outside as it is")
            del graph.value_info[:]


def _inside(names: Mapping[str, str], rename: Renaming, name: str) -> str:
    return names[name] if name in names else rename(name)
