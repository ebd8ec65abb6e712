"""An ONNX graph of one step in its canonical spelling."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graphs.step_model import read_step_model

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """x (B, 3), h_0 (B, 2) -> y (B, 2), h_n (B, 2), with a constant `w` (2, 3)."""

    def info(name: str, size: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", size])

    graph = helper.make_graph(
        [*nodes, helper.make_node("Add", ["y", "h_0"], ["h_n"])],
        "step",
        [info("x", 3), info("h_0", 2)],
        [info("y", 2), info("h_n", 2)],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def test_what_is_made_of_constants_is_a_constant() -> None:
    """Two nodes of a weight's preparation are gone, so that the product's weight is known."""
    step = read_step_model(
        model(
            helper.make_node("Transpose", ["w"], ["w_t"], perm=[1, 0]),
            helper.make_node("Neg", ["w_t"], ["minus"]),
            helper.make_node("MatMul", ["x", "minus"], ["y"]),
        ),
        ["h"],
    )
    assert [node.op_type for node in step.nodes] == ["MatMul", "Add"]
    np.testing.assert_array_equal(step.constants["minus"], -WEIGHT.T)


def test_what_is_drawn_at_random_is_no_constant() -> None:
    """A draw stays a draw, though the shape that it is given is constant."""
    step = read_step_model(
        model(
            helper.make_node("RandomNormalLike", ["w"], ["drawn"]),
            helper.make_node("Gemm", ["x", "drawn"], ["y"], transB=1),
        ),
        ["h"],
    )
    assert "RandomNormalLike" in [node.op_type for node in step.nodes]
