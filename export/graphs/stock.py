"""Stock dynamic quantization by ONNX Runtime's own tool: the variant that users know by name.

It takes one activation scale for the whole matrix, so a row feels the rows beside it; the gate
measures that, and the runtime then runs one row and one step at a time.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from export.errors import NothingQuantizedError
from export.graphs.graph_builder import all_nodes

# Without VNNI, x86 adds pairs of uint8 x int8 products in 16 bits that saturate; 7-bit weights
# cannot reach that. Full 8 bits were measured here (AVX2) to be off by 0.1 after one step.
REDUCE_RANGE = True
QUANTIZED_OPS = ("DynamicQuantizeLSTM", "MatMulInteger", "DynamicQuantizeMatMul")


def write_stock_int8(float_graph: onnx.ModelProto, target: Path) -> None:
    """Quantize the float graph's LSTM and MatMul nodes, one scale per channel.

    Raises:
        NothingQuantizedError: the variant would be a float one in disguise; there is no file.
    """
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises a pre-processing that this graph does not need
    try:
        quantize_dynamic(
            _with_weights_inside(float_graph),
            target,
            op_types_to_quantize=["LSTM", "MatMul"],  # an embedding's table stays exact
            per_channel=True,
            reduce_range=REDUCE_RANGE,
            weight_type=QuantType.QInt8,
            extra_options={"EnableSubgraph": True},
        )
    finally:
        logger.setLevel(level)
    if not any(node.op_type in QUANTIZED_OPS for node in all_nodes(onnx.load(target).graph)):
        target.unlink()
        raise NothingQuantizedError("ONNX Runtime found nothing to quantize in the float graph")


def _with_weights_inside(given: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with W and R of each LSTM beside it: in a Scan, the tool looks nowhere else."""
    model = onnx.ModelProto()
    model.CopyFrom(given)
    outer = {tensor.name: tensor for tensor in model.graph.initializer}
    for body in _bodies(model.graph):
        _move_weights(body, outer)
    used = {name for node in all_nodes(model.graph) for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
                yield from _bodies(attribute.g)


def _move_weights(body: onnx.GraphProto, outer: Mapping[str, onnx.TensorProto]) -> None:
    for k, node in enumerate(body.node):
        if node.op_type != "LSTM":
            continue
        for place in (1, 2):
            if node.input[place] not in outer:
                continue
            weight = onnx.TensorProto()
            weight.CopyFrom(outer[node.input[place]])
            weight.name = node.input[place] = f"{weight.name}_inside_{k}"
            body.initializer.append(weight)
