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
from export.graphs.int8_weights import ZERO_POINT, quantize_columns
from export.graphs.rowwise import H_SCALE, int8_product
from service.artifact import Artifact

Array = np.ndarray
ROOT = Path(__file__).parents[2]
HASWELL = ["qemu-x86_64", "-cpu", "Haswell", sys.executable]  # AVX2 and FMA, no AVX-512, no VNNI
CHECK = ["-m", "service.check", "--variant", "onnx-int8-rowwise", "--json"]
SIZE, OUTPUTS = 64, 32

pytestmark = [
    pytest.mark.needs("qemu-x86_64"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="runs this Python under qemu"),
]


def extreme_x() -> Array:
    """(8, SIZE) float32: rows all at 1, all at -1, alternating, and random within."""
    x = np.random.default_rng(0).uniform(-1, 1, (8, SIZE))
    x[0], x[1], x[2, ::2], x[3, ::2] = 1, -1, 1, -1
    return x.astype(np.float32)


def extreme_matrix() -> Array:
    """(OUTPUTS, SIZE): a third of the outputs at their peak, one at its negative, others random."""
    matrix = np.random.default_rng(1).standard_normal((OUTPUTS, SIZE))
    matrix[:8], matrix[8:16] = 0.5, -0.25
    return matrix


def exact() -> Array:
    """The product in integers, scaled once: (8, OUTPUTS) float32."""
    scale = np.float32(H_SCALE)
    levels = np.rint(extreme_x() / scale).astype(np.int64)
    weights, weight_scale = quantize_columns(extreme_matrix())
    whole = levels @ (weights.astype(np.int64) - ZERO_POINT)
    assert np.abs(whole).max() < 2**24  # float32 holds it exactly
    return whole.astype(np.float32) * (scale * weight_scale)


def our_graph() -> onnx.ModelProto:
    """x (B, SIZE) -> y, by the very product of the rowwise variant."""
    g = GraphBuilder()
    g.name(int8_product(g, ["x"], extreme_matrix(), np.zeros(OUTPUTS)), "y")
    graph = helper.make_graph(
        g.nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", OUTPUTS])],
        list(g.initializers.values()),
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def with_signed_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers as stock tools write them: int8 weights of the full range, zero point 0."""
    signed = onnx.ModelProto()
    signed.CopyFrom(model)
    (node,) = (node for node in signed.graph.node if node.op_type == "MatMulIntegerToFloat")
    for tensor in signed.graph.initializer:
        if tensor.name in (node.input[1], node.input[5]):  # the weights, and their zero points
            levels = numpy_helper.to_array(tensor).astype(np.int16) - ZERO_POINT
            tensor.CopyFrom(numpy_helper.from_array(levels.astype(np.int8), tensor.name))
    return signed


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """GRAPH.PRECISE -> y (2, 8, OUTPUTS), whole and row by row, as the emulated CPU gives it."""
    folder = tmp_path_factory.mktemp("products")
    np.save(folder / "x.npy", extreme_x())
    onnx.save(our_graph(), folder / "ours.onnx")
    onnx.save(with_signed_weights(our_graph()), folder / "signed.onnx")
    script = Path(__file__).with_name("run_products.py")
    subprocess.run([*HASWELL, str(script), str(folder)], check=True, capture_output=True)
    return {path.stem: np.load(path) for path in folder.glob("*.?.npy")}


def test_rowwise_products_are_exact_without_vnni(products: dict[str, Array]) -> None:
    """Bit for bit what integers give, at every extreme, in a batch and alone."""
    for y in products["ours.0"]:
        assert y.tobytes() == exact().tobytes()


def test_signed_weights_of_the_full_range_saturate_there(products: dict[str, Array]) -> None:
    """So the emulated CPU has the fault; ONNX Runtime's option for it repairs these too."""
    error = np.abs(products["signed.0"] - exact())
    # 64 times 1 times the peak 0.5 is 32. A pair is 2 * 255 * 127 in uint8 x int8, of which 32,767
    # is left: what is lost of 32 pairs is 31.7.
    np.testing.assert_allclose(error[:, 0, :8], 31.7, atol=0.1)
    for y in (*products["signed.1"], *products["ours.1"]):
        assert y.tobytes() == exact().tobytes()


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
