"""One int8 product as ONNX nodes, whose scales are constants or of each row.

The layout is what was measured to be fastest (ONNX Runtime 1.32, AVX-512 VNNI; see
`benchmarks.int8`), and changes no bit: the scales of the columns have shape (1, 1, n_out), by which
ONNX Runtime multiplies the result. Of shape (n_out,) it would multiply them by the input's scale
first, one by one, at every call: 10 us of 100 at hidden 1024, batch 1. The bias is added before, so
it is divided by them.
"""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from export.graphs.graph_builder import MICROSOFT, GraphBuilder
from export.graphs.int8_weights import Int8Matrix, quantize, quantize_columns

Array = np.ndarray
ZERO_POINT = 128  # of a quantized activation, a uint8
H_SCALE = 1 / 127  # h in [-1, 1] <-> uint8 1..255
LEAST_PEAK = np.array(1e-30, np.float32)  # of a row of zeros, which must not be divided by zero
LARGEST_BIAS = 1e30  # in units of a column's scale; beside it float32 shows no product
MIN_INT8_OUTPUTS = 16  # a narrower product is too small for int8 to gain anything


def int8_weight(g: GraphBuilder, matrix: Array, *, stacked: bool = False) -> str:
    """A matrix (n_out, n_in) as float32 (n_in, n_out) that is int8 in the file.

    ONNX Runtime makes it float once, when it loads the model, and the products are those of float.
    A DequantizeLinear would not be folded (1.32, unless `session.disable_quant_qdq` says so): at
    the top of a graph it becomes a MatMulNBits, whose bits are others than in a Scan, and beside a
    Scan it is run at every call (2.5 times the time of 20 steps of 512 x 2048 at batch 1).

    Args:
        stacked: as (1, n_out, n_in), which the operators of cells take.
    """
    levels, scale = quantize_columns(matrix)
    if stacked:
        levels, scale = levels.T[None], scale[None, :, None]
    whole = g.prepare("Cast", g.constant(levels, "weight_s8"), to=TensorProto.FLOAT)
    return g.prepare("Mul", whole, g.constant(scale, "weight_scale"))


def int8_product_by_row(g: GraphBuilder, value: str, matrix: Array) -> str:
    """Values (.., n_in) without a bound, times a matrix (n_out, n_in), by each row's own peak."""
    peak = g.shared("ReduceMax", g.shared("Abs", value), g.ints(-1), keepdims=1)
    peak = g.shared("Max", peak, g.constant(LEAST_PEAK, "least"))
    nothing, weights = np.zeros(len(matrix)), quantize(matrix)
    (product,) = int8_products(g, g.shared("Div", value, peak), weights, nothing, [len(matrix)])
    return g.one("Mul", product, peak)


def int8_products(
    g: GraphBuilder,
    value: str,
    weights: Int8Matrix,
    bias: Array,
    cuts: Sequence[int],
    peak: float = 1.0,
) -> list[str]:
    """A value (.., n_in) in [-peak, peak] times int8 weights, plus a bias.

    Args:
        bias: (n_out,).
        cuts: of the results, n_out together.
    """
    quantized = _quantize(g, value, peak)
    in_scale = g.constant(np.array(peak * H_SCALE, np.float32), "h_scale")
    zero_point = g.constant(np.array(ZERO_POINT, np.uint8), "zero_point")
    drowned = np.abs(bias) > LARGEST_BIAS * weights.scales
    levels = np.where(drowned, 0, weights.levels).astype(np.int8)
    scales = np.where(drowned, 1, weights.scales).astype(np.float32)
    added = (bias / scales).astype(np.float32)
    results = []
    for stop, size in zip(np.cumsum(cuts), cuts, strict=True):
        columns = slice(stop - size, stop)
        results.append(
            g.one(
                "MatMulIntegerToFloat",
                quantized,
                g.constant(np.ascontiguousarray(levels[:, columns]), "weight_s8"),
                in_scale,
                g.constant(scales[None, None, columns], "weight_scale"),
                zero_point,
                "",  # the weights' zero point is 0: given as an input, it costs the fast kernels
                g.constant(added[columns], "bias"),
                domain=MICROSOFT,
            )
        )
    return results


def _quantize(g: GraphBuilder, value: str, peak: float) -> str:
    return g.shared(
        "QuantizeLinear",
        value,
        g.constant(np.array(peak * H_SCALE, np.float32), "h_scale"),
        g.constant(np.array(ZERO_POINT, np.uint8), "zero_point"),
    )
