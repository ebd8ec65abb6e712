"""Sizes that an exporter wrote into an ONNX graph as constants, taken out again.

A file that was exported without dynamic axes has the example's batch and number of steps in the
shapes of its inputs, and often in the constants that `Reshape` and `Expand` take. Which of these
numbers are the batch's, only a run can tell: the copies here are proposals.
"""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from export.onnx_in.source import Array

SHAPES_OF = {"Reshape": 1, "Expand": 1}  # operator -> which of its inputs is a shape
MAX_PROPOSALS = 40
FREE, AS_BEFORE = -1, 0  # in a Reshape's shape: whatever is left; the input's own size


def with_input_sizes(
    proto: onnx.ModelProto, sizes: Mapping[tuple[str, int], int | str]
) -> onnx.ModelProto:
    """A copy with other sizes (or names, for free axes) at (input, axis); later shapes unsaid."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graph = copy.graph
    del graph.value_info[:]
    inputs = {value.name: value for value in graph.input}
    for (name, axis), size in sizes.items():
        dim = inputs[name].type.tensor_type.shape.dim[axis]
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = size
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    constants_as_initializers(graph)
    return copy


def constants_as_initializers(graph: onnx.GraphProto) -> None:
    """Move the tensors of `Constant` nodes to the initializers, in place."""
    kept = []
    for node in graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            value.t.name = node.output[0]
            graph.initializer.append(value.t)
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def without_size(proto: onnx.ModelProto, old: int, new: int) -> Iterator[onnx.ModelProto]:
    """Copies in which `old` in constant shapes is `new` (or FREE) at none, all, or some places."""
    values = {t.name: t for t in proto.graph.initializer}
    uses: list[tuple[int, int, list[Array]]] = []
    for index, node in enumerate(proto.graph.node):
        place = SHAPES_OF.get(node.op_type)
        if place is None or node.input[place] not in values:
            continue
        shape = numpy_helper.to_array(values[node.input[place]])
        options = [shape, *_replaced(shape, old, new, node.op_type)]
        if len(options) > 1:
            uses.append((index, place, options))
    yield proto
    choices = itertools.product(*(range(len(options)) for *_, options in uses))
    # Most often every one of them is meant, and at the same place.
    ordered = sorted(
        itertools.islice(choices, 4096), key=lambda c: (c.count(0), len(set(c)), sum(c))
    )
    for choice in ordered[:MAX_PROPOSALS]:
        if not any(choice):
            continue
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        for (index, place, options), k in zip(uses, choice, strict=True):
            if k:
                name = f"shape_of_{index}_{len(copy.graph.initializer)}"
                copy.graph.initializer.append(numpy_helper.from_array(options[k], name))
                copy.graph.node[index].input[place] = name
        yield copy


def _replaced(shape: Array, old: int, new: int, op: str) -> Iterator[Array]:
    for axis in np.flatnonzero(shape == old):
        value = new
        if new == FREE and op == "Expand":
            value = 1  # as its input is
        elif new == FREE and FREE in shape:
            value = AS_BEFORE
        if value != old:
            changed = shape.copy()
            changed[axis] = value
            yield changed
