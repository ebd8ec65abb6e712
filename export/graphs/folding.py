"""What a graph computes from constants alone, computed beforehand.

Exporters join an LSTM's weights by operators in the graph, and choose a branch by an input that is
constant here (a sampling rate). Folded, the weights are seen and the branch is gone.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graphs.graph_builder import IR_VERSION
from export.graphs.naming import bodies, reads, rename
from export.graphs.session import start_session

Array = np.ndarray
SMALL = 200  # bytes of a tensor of one value
NO_TENSORS = ("SequenceEmpty", "SequenceConstruct", "SplitToSequence", "Optional")
RANDOM = (  # a draw stays a draw, though all that it is given is constant
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
    "Bernoulli", "Dropout",
)  # fmt: skip


def fold_constants(model: onnx.ModelProto) -> None:
    """Compute what depends on no input, and take the branches that are decided, in place."""
    for count in itertools.count():
        _fold(model)
        while _state_sizes(model):
            _fold(model)
        if not _take_body(model.graph, f"body_{count}/"):
            return


def _fold(model: onnx.ModelProto) -> None:
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    folded: list[onnx.NodeProto] = []
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        plain = not bodies(node) and node.op_type not in RANDOM + NO_TENSORS
        if plain and all(name in known for name in node.input if name):
            folded.append(node)
            known.update(node.output)
        else:
            kept.append(node)
    wanted = {value.name for value in graph.output}
    used: list[onnx.NodeProto] = []
    for node in reversed(kept):  # what nothing reads goes, too
        if wanted & set(node.output):
            used.append(node)
            wanted |= reads(node)
    kept = used[::-1]
    names = [name for node in folded for name in node.output if name in wanted]
    values: list[Array] = []
    if names:
        outputs = [onnx.ValueInfoProto(name=name) for name in names]
        part = helper.make_graph(folded, "constants", [], outputs, list(graph.initializer))
        whole = helper.make_model(part, opset_imports=model.opset_import, ir_version=IR_VERSION)
        values = start_session(whole).run(names, {})
    wanted_tensors = [tensor for tensor in graph.initializer if tensor.name in wanted]
    computed = [
        numpy_helper.from_array(np.asarray(value, order="C"), name)
        for name, value in zip(names, values, strict=True)
    ]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend([*wanted_tensors, *computed])


def _state_sizes(model: onnx.ModelProto) -> bool:
    """Put constants for `Shape`, or one element of it, where the sizes are known."""
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in value.type.tensor_type.shape.dim
        ]
        for value in (*inferred.value_info, *inferred.input)
        if value.type.tensor_type.HasField("shape")
    }
    constants = {tensor.name: tensor for tensor in graph.initializer}
    measured: dict[str, list[int | None]] = {}  # the result of a Shape -> what is known of it
    found: dict[str, Array] = {}
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in shapes:
            given = {a.name: a.i for a in node.attribute}
            sizes = shapes[node.input[0]][given.get("start", 0) : given.get("end")]
            measured[node.output[0]] = sizes
            if all(size is not None for size in sizes):
                found[node.output[0]] = np.array(sizes, np.int64)
        elif node.op_type == "Size" and node.input[0] in measured:
            found[node.output[0]] = np.array(len(measured[node.input[0]]), np.int64)
        elif node.op_type == "Gather" and node.input[0] in measured and node.input[1] in constants:
            index = numpy_helper.to_array(constants[node.input[1]])
            chosen = [measured[node.input[0]][k] for k in index.reshape(-1)]
            if all(size is not None for size in chosen):
                found[node.output[0]] = np.array(chosen, np.int64).reshape(index.shape)
    kept = [node for node in graph.node if node.output[0] not in found]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in found.items())
    return bool(found)


def _take_body(graph: onnx.GraphProto, prefix: str) -> bool:
    """Put the body of one `If` that is decided, or `Loop` of one turn, in its place, if any is."""
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.ByteSize() < SMALL}
    for index, node in enumerate(graph.node):
        inside: list[onnx.NodeProto] | None = None
        if node.op_type == "If" and node.input[0] in values:
            name = "then_branch" if values[node.input[0]].reshape(()) else "else_branch"
            body = next(a.g for a in node.attribute if a.name == name)
            inside = _inlined(graph, body, prefix, ())
            results = [value.name for value in body.output]
        elif node.op_type == "Loop" and _turns_once(node, values):
            (body,) = bodies(node)
            start = numpy_helper.from_array(np.zeros((), np.int64), f"{prefix}turn")
            go_on = numpy_helper.from_array(np.ones((), np.bool_), f"{prefix}go_on")
            graph.initializer.extend([start, go_on])
            inside = _inlined(graph, body, prefix, (start.name, go_on.name, *node.input[2:]))
            results = [value.name for value in body.output][1:]
        if inside is None:
            continue
        carried = len(node.input) - 2 if node.op_type == "Loop" else len(results)
        axis = numpy_helper.from_array(np.zeros(1, np.int64), f"{prefix}axis")
        graph.initializer.append(axis)
        for k, (result, output) in enumerate(zip(results, node.output, strict=True)):
            if output and k < carried:
                inside.append(helper.make_node("Identity", [result], [output]))
            elif output:  # a Loop stacks what it gives at each turn
                inside.append(helper.make_node("Unsqueeze", [result, axis.name], [output]))
        nodes = [*graph.node[:index], *inside, *graph.node[index + 1 :]]
        del graph.node[:]
        graph.node.extend(nodes)
        return True
    return False


def _turns_once(node: onnx.NodeProto, values: Mapping[str, Array]) -> bool:
    count, condition = node.input[:2]
    if count not in values or values[count].reshape(()) != 1:
        return False
    return not condition or (condition in values and bool(values[condition].reshape(())))


def _inlined(
    graph: onnx.GraphProto, body: onnx.GraphProto, prefix: str, given: tuple[str, ...]
) -> list[onnx.NodeProto]:
    """A body's nodes with names of their own; its inputs are `given`, its results renamed too."""
    own = {name for inner in body.node for name in inner.output}
    own |= {tensor.name for tensor in body.initializer}
    names = {name: prefix + name for name in own if name}
    names |= {value.name: name for value, name in zip(body.input, given, strict=True)}
    for tensor in body.initializer:
        tensor.name = names[tensor.name]
        graph.initializer.append(tensor)
    nodes = list(body.node)
    for inner in nodes:
        rename(inner, names)
    for value in body.output:
        value.name = names.get(value.name, value.name)
    return nodes
