"""int8 weights by our own arithmetic: worked by hand, and equal to torch's and ONNX Runtime's."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from export.graphs.int8_weights import (
    PAIR_LEVELS,
    WEIGHT_LEVELS,
    Int8Matrix,
    quantize,
    quantize_columns,
)

Array = np.ndarray
TINY = float(np.finfo(np.float32).tiny)


def signed(matrix: Array) -> Array:
    """The levels of a matrix (n_out, n_in), in its own shape, around zero."""
    return quantize_columns(matrix)[0].astype(int).T


def test_columns_are_quantized_each_by_its_own_peak() -> None:
    """Worked by hand: the peak of each output becomes 127 levels, zero stays zero."""
    matrix = np.array([[1.0, -0.5, 0.0], [0.0, 0.0, 0.0], [0.01, 0.02, -0.0254]])
    levels, scale = quantize_columns(matrix)
    np.testing.assert_allclose(scale, [1 / 127, 1.0, 0.0254 / 127], rtol=1e-6)
    assert (levels.dtype.name, scale.dtype.name) == ("int8", "float32")
    assert signed(matrix).tolist() == [[127, -64, 0], [0, 0, 0], [50, 100, -127]]


def test_rounding_is_at_most_half_a_level() -> None:
    """Dequantized weights are within half a scale of the original."""
    matrix = np.random.default_rng(0).standard_normal((40, 70))
    scale = quantize_columns(matrix)[1]
    assert (np.abs(signed(matrix) * scale[:, None] - matrix) <= 0.5001 * scale[:, None]).all()


def test_halves_are_rounded_to_even() -> None:
    """With a peak of 127 the scale is 1 and every half is exact."""
    row = np.array([[127.0, 0.5, 1.5, 2.5, 126.5, -0.5, -1.5, -2.5, -126.5]])
    assert signed(row).tolist() == [[127, 0, 2, 2, 126, 0, -2, -2, -126]]


def test_huge_weights_keep_their_levels() -> None:
    """Up to the greatest float32 nothing overflows."""
    greatest = float(np.finfo(np.float32).max)
    matrix = np.array([[greatest, -greatest, greatest / 4, 1.0]])
    assert signed(matrix).tolist() == [[127, -127, 32, 0]]
    assert np.isfinite(quantize_columns(matrix)[1]).all()


@pytest.mark.parametrize("peak", [TINY * 126, TINY, 1e-45, 0.0])
def test_weights_too_small_for_a_normal_scale_are_zero(peak: float) -> None:
    """A denormal scale would have few bits, and none on a CPU that flushes to zero."""
    levels, scale = quantize_columns(np.array([[peak, -peak], [1.0, 0.5]]))
    assert levels[:, 0].tolist() == [0, 0]
    assert scale[0] == 1.0
    assert levels[:, 1].tolist() == [127, 64]


def test_the_least_normal_scale_is_used() -> None:
    """Where the convention begins: at a scale of exactly float32's least normal number."""
    levels, scale = quantize_columns(np.array([[TINY * 127, TINY]]))
    assert (levels[:, 0].tolist(), scale[0]) == ([127, 1], TINY)


HARD = {
    "normal": np.random.default_rng(0).standard_normal((256, 2000)).astype(np.float32),
    "uneven": (
        np.random.default_rng(1).standard_normal((64, 100)) * np.logspace(-30, 30, 64)[:, None]
    ).astype(np.float32),
    "halves": np.concatenate([np.full((4, 1), 127), np.arange(-40, 40).reshape(4, 20) + 0.5], 1),
    "one sign": np.random.default_rng(2).uniform(0.1, 1, (32, 100)).astype(np.float32),
    "zeros and denormals": np.array(
        [[0.0] * 3, [1e-42, -1e-41, 0], [TINY, TINY / 2, 0], [1, 2, 3]]
    ),
}


@pytest.mark.parametrize("name", HARD)
def test_levels_and_scales_are_those_of_onnx_runtime(name: str, tmp_path: Path) -> None:
    """`quantize_dynamic` of an LSTM's W and of a MatMul, per channel: to the last bit."""
    matrix = HARD[name].astype(np.float32)
    levels, scale = quantize_columns(matrix)
    stored, stored_scale = by_onnx_runtime(matrix.T, tmp_path, reduce_range=False)
    np.testing.assert_array_equal(stored, levels)
    np.testing.assert_array_equal(stored_scale, scale)


def test_its_reduced_range_is_the_same_with_64_levels(tmp_path: Path) -> None:
    """What the stock variant stores: 64 levels in the place of 127, 7 bits and the sign."""
    matrix = HARD["normal"]
    stored, scale = by_onnx_runtime(matrix.T, tmp_path, reduce_range=True)
    np.testing.assert_allclose(scale * 64, quantize_columns(matrix)[1] * 127, rtol=1e-6)
    np.testing.assert_array_equal(stored, np.rint(matrix.T / scale))
    assert np.abs(stored).max() == 64


@pytest.mark.parametrize("name", HARD)
def test_levels_are_those_of_torch_but_next_to_a_half(name: str) -> None:
    """Torch multiplies by 1 / scale, so a quotient by a half's side may fall to the other level."""
    matrix = HARD[name].astype(np.float32)
    levels, scale = quantize_columns(matrix)
    theirs = by_torch(matrix, scale)
    ours = levels.T.astype(int)
    quotient = matrix.astype(np.float64) / scale[:, None]
    from_half = np.abs(quotient - np.floor(quotient) - 0.5)
    moved = theirs != ours
    assert (np.abs(theirs - ours) <= 1).all()
    assert (from_half[moved] < 127 * 2.0**-22).all()
    assert moved.mean() < 1e-3


@pytest.mark.parametrize(("least", "steps"), [(-127, 127.0), (-128, 127.5)])
def test_scales_are_those_of_torch_by_its_range(least: int, steps: float) -> None:
    """Its observer gives our scales over -127..127; over -128..127, its default, it takes 127.5."""
    quantization = pytest.importorskip("torch.ao.quantization")
    observer = quantization.PerChannelMinMaxObserver(
        ch_axis=0,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        quant_min=least,
        quant_max=127,
    )
    observer(torch.from_numpy(HARD["normal"]))
    theirs = observer.calculate_qparams()[0].numpy()
    ours = quantize_columns(HARD["normal"])[1]
    np.testing.assert_allclose(theirs * steps, ours * WEIGHT_LEVELS, rtol=2e-7)


def test_torch_loses_weights_that_are_kept_here() -> None:
    """Its least scale is float32's epsilon."""
    quantization = pytest.importorskip("torch.ao.quantization")
    small = np.array([[5e-8, -2e-8]], np.float32)
    observer = quantization.PerChannelMinMaxObserver(
        ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric
    )
    observer(torch.from_numpy(small))
    assert not by_torch(small, observer.calculate_qparams()[0].numpy()).any()
    assert signed(small).tolist() == [[127, -51]]


def by_torch(matrix: Array, scale: Array) -> Array:
    """The levels of (n_out, n_in) float32 by torch's own quantized tensor, for given scales."""
    if not hasattr(torch, "quantize_per_channel"):
        pytest.skip("this torch has no quantized tensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their deprecation, once a process
        quantized = torch.quantize_per_channel(
            torch.from_numpy(matrix),
            torch.from_numpy(scale),
            torch.zeros(len(scale)),
            0,
            torch.qint8,
        )
    return quantized.int_repr().numpy().astype(int)


def by_onnx_runtime(weight: Array, folder: Path, reduce_range: bool) -> tuple[Array, Array]:
    """What `quantize_dynamic` stores of (n_in, n_out): levels and scales, of a MatMul's columns.

    An LSTM beside it that has the same weights as its W is checked to be stored the same.
    """
    size = len(weight)
    given = onnx.TensorProto.FLOAT
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"])]
    constants = [numpy_helper.from_array(weight, "weight")]
    outputs = [helper.make_tensor_value_info("y", given, ["B", weight.shape[1]])]
    hidden = weight.shape[1] // 4
    if hidden:  # R is (1, 4H, H), W (1, 4H, I): as W it may have any number of columns
        gates = np.ascontiguousarray(weight.T[None, : 4 * hidden])
        recurrent = np.zeros((1, 4 * hidden, hidden), np.float32)
        constants += [numpy_helper.from_array(gates, "W"), numpy_helper.from_array(recurrent, "R")]
        nodes += [
            helper.make_node("Unsqueeze", ["x", "first"], ["sequence"]),
            helper.make_node("LSTM", ["sequence", "W", "R"], ["h"], hidden_size=hidden),
        ]
        constants.append(numpy_helper.from_array(np.array([0]), "first"))
        outputs.append(helper.make_tensor_value_info("h", given, None))
    inputs = [helper.make_tensor_value_info("x", given, ["B", size])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    path = folder / "float.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    quantize_dynamic(
        path,
        folder / "int8.onnx",
        per_channel=True,
        reduce_range=reduce_range,
        weight_type=QuantType.QInt8,
    )
    stored = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "int8.onnx").graph.initializer
    }
    if hidden:
        np.testing.assert_array_equal(stored["W_quantized"][0], stored["weight_quantized"])
        np.testing.assert_array_equal(stored["W_scale"][0], stored["weight_scale"])
    return stored["weight_quantized"].astype(int), stored["weight_scale"]


def whole(weights: Int8Matrix) -> Array:
    """What the weights are, both parts together: (n_out, n_in)."""
    exact = weights.levels * weights.scales.astype(np.float64)
    return np.asarray((exact + weights.down @ weights.up).T)


def test_what_counts_is_exact_and_immune_to_rounded_inputs() -> None:
    """Gradients along 3 directions: g . W v is exact, though v is rounded for the int8 part."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((60, 40))
    gradients = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 60))
    value = rng.uniform(-1, 1, 40)
    rounded = np.rint(value * 127) / 127

    def error(weights: Int8Matrix) -> float:
        product = (rounded @ weights.levels) * weights.scales + value @ weights.down @ weights.up
        return float(np.abs(gradients @ (product - matrix @ value)).max())

    plain, kept = quantize(matrix), quantize(matrix, gradients)
    assert (plain.rank, kept.rank) == (0, 3)
    assert (kept.down.shape, kept.up.shape) == ((40, 3), (3, 60))
    assert error(kept) < 0.02 * error(plain)
    assert np.abs(whole(kept) - matrix).max() <= 1.5 * np.abs(whole(plain) - matrix).max()


@pytest.mark.parametrize(("inputs", "rank"), [(16, 4), (64, 8), (512, 8), (1024, 16)])
def test_the_part_in_float_is_small(inputs: int, rank: int) -> None:
    """Its rank is a quarter of the inputs at most, and grows with them slowly."""
    rng = np.random.default_rng(0)
    matrix, gradients = rng.standard_normal((64, inputs)), rng.standard_normal((100, 64))
    assert quantize(matrix, gradients * np.logspace(0, -4, 64)).rank == rank


@pytest.mark.parametrize(("share", "rank"), [(0.9, 5), (0.996, 4)])
def test_no_more_directions_are_taken_than_are_felt(share: float, rank: int) -> None:
    """Four directions of equal weight hold `share` of what is felt, four more the rest."""
    each = np.sqrt(np.array([share] * 4 + [(1 - share)] + [1e-6] * 35))
    assert quantize(np.eye(40), np.diag(each)).rank == rank


def test_where_every_direction_counts_there_is_no_part_in_float() -> None:
    """It would cost its time and leave most of the error."""
    rng = np.random.default_rng(0)
    matrix, gradients = rng.standard_normal((64, 64)), rng.standard_normal((1000, 64))
    found, plain = quantize(matrix, gradients), quantize(matrix)
    assert found.rank == 0
    np.testing.assert_array_equal(found.levels, plain.levels)


def test_a_part_in_float_leaves_no_pair_that_saturates() -> None:
    """What is left after it was taken out keeps the limit of neighbours of one sign."""
    rng = np.random.default_rng(0)
    matrix = np.abs(rng.standard_normal((60, 41)))
    levels = quantize(matrix, rng.standard_normal((100, 60))).levels.astype(int)
    first, second = levels[0:40:2], levels[1:41:2]
    assert np.abs(first + second)[first * second > 0].max() <= PAIR_LEVELS


def test_directions_that_the_weights_do_not_have_are_not_kept() -> None:
    """Of a matrix of rank 2 two directions are kept, which is all of it; of zeros none."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((100, 60))
    matrix = rng.standard_normal((60, 2)) @ rng.standard_normal((2, 40))
    found = quantize(matrix, gradients)
    assert found.rank == 2
    np.testing.assert_allclose(whole(found), matrix, atol=1e-5)
    assert quantize(np.zeros((60, 40)), gradients).rank == 0
