"""Stock dynamic quantization by ONNX Runtime's own tool: the variant that users know by name.

It takes one activation scale for the whole matrix, so a row feels the rows beside it; the gate
measures that, and the runtime then runs one row and one step at a time.
"""

import logging
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from export.errors import NothingQuantizedError
from export.graph_builder import all_nodes

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
            float_graph,
            target,
            op_types_to_quantize=_kinds(float_graph.graph),
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


def _kinds(graph: onnx.GraphProto) -> list[str]:
    """An embedding's table stays exact; an LSTM whose weights are outside its own graph, too."""
    bodies = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    inside = [node for body in bodies for node in all_nodes(body)]
    return ["MatMul"] if any(node.op_type == "LSTM" for node in inside) else ["LSTM", "MatMul"]
