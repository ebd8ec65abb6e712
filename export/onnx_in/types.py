"""A graph in float64 as one in float32: what the artifact's variants compute in."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper


def as_float32(graph: onnx.GraphProto) -> None:
    """Make every float64 of a graph a float32, in place, its sub-graphs' too."""
    for tensor in graph.initializer:
        _convert(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _convert(attribute.t)
            elif attribute.HasField("g"):
                as_float32(attribute.g)
            elif attribute.name in ("to", "dtype") and attribute.i == TensorProto.DOUBLE:
                attribute.i = TensorProto.FLOAT


def _convert(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.DOUBLE:
        value = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
