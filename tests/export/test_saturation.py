"""Rowwise int8 on a CPU without VNNI, which qemu emulates: AVX2, where uint8 x int8 saturates."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graphs.graph_builder import IR_VERSION, MICROSOFT, OPSET, GraphBuilder
from export.graphs.int8_product import H_SCALE, int8_products
from export.graphs.int8_weights import quantize, quantize_columns, quantize_pairs
from service.artifact import Artifact

Array = np.ndarray
ROOT = Path(__file__).parents[2]
HASWELL = ["qemu-x86_64", "-cpu", "Haswell", sys.executable]  # AVX2 and FMA, no AVX-512, no VNNI
CHECK = ["-m", "service.check", "--variant", "onnx-int8-rowwise", "--json"]
SIZES, OUTPUTS = (64, 37), 32  # inputs: whole groups of a kernel's, and not

pytestmark = [
    pytest.mark.needs("qemu-x86_64"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="runs this Python under qemu"),
]


def extreme_x(size: int) -> Array:
    """(8, size) float32: rows all at 1, all at -1, alternating, and random within."""
    x = np.random.default_rng(0).uniform(-1, 1, (8, size))
    x[0], x[1], x[2, ::2], x[3, ::2] = 1, -1, 1, -1
    return x.astype(np.float32)


def extreme_matrix(size: int) -> Array:
    """(OUTPUTS, size): outputs all at their peak, at its negative, of one sign, and of both."""
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((OUTPUTS, size))
    matrix[:8], matrix[8:16], matrix[16:24] = 0.5, -0.25, rng.uniform(0, 1, (8, size))
    return matrix


def exact(size: int, levels: Array, scales: Array) -> Array:
    """The product of x and (n_in, n_out) levels in integers, then scaled: (8, OUTPUTS) float32."""
    scale = np.float32(H_SCALE)
    whole = np.rint(extreme_x(size) / scale).astype(np.int64) @ levels.astype(np.int64)
    assert np.abs(whole).max() < 2**24  # float32 holds it exactly
    return np.asarray(whole.astype(np.float32) * scale * scales)


def full_range(size: int) -> tuple[Array, Array]:
    """Levels and scales as stock tools write them: each output by its own peak, in int8."""
    return quantize_columns(extreme_matrix(size))


def our_graph(size: int) -> onnx.ModelProto:
    """x (B, size) -> y, by the very product of the rowwise variant."""
    g = GraphBuilder()
    (y,) = int8_products(g, "x", quantize(extreme_matrix(size)), np.zeros(OUTPUTS), [OUTPUTS])
    g.name(y, "y")
    graph = helper.make_graph(
        g.nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", OUTPUTS])],
        list(g.initializers.values()),
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def stock_graph(size: int) -> onnx.ModelProto:
    """The same with levels and scales of the full range."""
    model = our_graph(size)
    (node,) = (node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat")
    given = dict(zip((node.input[1], node.input[3]), full_range(size), strict=True))
    for tensor in model.graph.initializer:
        if tensor.name in given:
            value = given[tensor.name].reshape(tensor.dims)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Array]:
    """(inputs, GRAPH.PRECISE) -> y (2, 8, OUTPUTS), whole and row by row, as that CPU gives it."""
    root = tmp_path_factory.mktemp("products")
    folders = {size: root / str(size) for size in SIZES}
    for size, folder in folders.items():
        folder.mkdir()
        np.save(folder / "x.npy", extreme_x(size))
        onnx.save(our_graph(size), folder / "ours.onnx")
        onnx.save(stock_graph(size), folder / "stock.onnx")
    script = Path(__file__).with_name("run_products.py")
    command = [*HASWELL, str(script), *map(str, folders.values())]
    subprocess.run(command, check=True, capture_output=True)
    return {
        (size, path.stem): np.load(path)
        for size, folder in folders.items()
        for path in folder.glob("*.?.npy")
    }


@pytest.mark.parametrize("size", SIZES)
def test_rowwise_products_are_exact_without_vnni(
    products: dict[tuple[int, str], Array], size: int
) -> None:
    """Bit for bit what integers give, at every extreme, in a batch and alone."""
    expected = exact(size, *quantize_pairs(extreme_matrix(size)))
    for y in (*products[size, "ours.0"], *products[size, "ours.1"]):
        assert y.tobytes() == expected.tobytes()


def test_weights_of_the_full_range_saturate_there(
    products: dict[tuple[int, str], Array],
) -> None:
    """So the emulated CPU has the fault; ONNX Runtime's option against it repairs them."""
    expected = exact(64, *full_range(64))
    # 64 times 1 times the peak 0.5 is 32. A pair is 2 * 255 * 127 in uint8 x int8, of which 32,767
    # is left: what is lost of 32 pairs is 31.7.
    error = np.abs(products[64, "stock.0"] - expected)
    np.testing.assert_allclose(error[:, 0, :8], 31.7, atol=0.1)
    for y in products[64, "stock.1"]:
        assert y.tobytes() == expected.tobytes()


def test_a_rowwise_artifact_passes_its_check_there(demo_artifacts: dict[str, Artifact]) -> None:
    """The golden sequences within the tolerance, and no row feels another."""
    done = subprocess.run(
        [*HASWELL, *CHECK, str(demo_artifacts["series-lstm"].path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["variants"]
    assert (found["result"], found["isolated"]) == ("pass", True)
