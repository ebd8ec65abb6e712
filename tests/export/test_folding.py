"""What a graph computes from constants alone is computed beforehand, without another result."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graphs.folding import fold_constants
from export.graphs.naming import prefixed
from export.graphs.session import start_session
from export.onnx_in.opset import at_our_opset
from export.onnx_in.types import as_float32

Array = np.ndarray
X: list[str | int] = ["B", 3]


def model(
    nodes: list[onnx.NodeProto], tensors: dict[str, Array], kind: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """x (B, 3) -> y."""
    graph = helper.make_graph(
        nodes,
        "some",
        [helper.make_tensor_value_info("x", kind, X)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def branch(name: str, op: str) -> onnx.GraphProto:
    """x and `one` from outside, through an operator; the inner names are the same in each."""
    nodes = [
        helper.make_node(op, ["x", "one"], ["inner"]),
        helper.make_node("Neg", ["inner"], ["result"]),
    ]
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)]
    )


def run(graph: onnx.ModelProto, batch: int = 2) -> Array:
    x = np.random.default_rng(0).standard_normal((batch, 3))
    dtype = "f8" if graph.graph.input[0].type.tensor_type.elem_type == TensorProto.DOUBLE else "f4"
    name = graph.graph.input[0].name
    (y,) = start_session(graph).run(None, {name: x.astype(dtype)})
    return np.asarray(y)


def ops(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node]


@pytest.mark.parametrize("features", [3, 4])
def test_a_branch_that_a_known_size_decides_is_taken(features: int) -> None:
    """`if x.size(1) == features`, twice: the batch stays free, and the names do not collide."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "axis"], ["size"]),
        helper.make_node("Equal", ["size", "features"], ["decided"]),
        *(
            helper.make_node(
                "If",
                ["decided"],
                [out],
                then_branch=branch("t", "Add"),
                else_branch=branch("e", op),
            )
            for out, op in (("p", "Mul"), ("q", "Sub"))
        ),
        helper.make_node("Concat", ["p", "q"], ["y"], axis=1),
    ]
    tensors: dict[str, Array] = {
        "one": np.array([1, 2, 3], np.float32),
        "axis": np.array(1, np.int64),
        "features": np.array(features, np.int64),
    }
    ours = model(nodes, tensors)
    wanted = run(ours)
    fold_constants(ours)
    chosen = ["Add", "Add"] if features == 3 else ["Mul", "Sub"]
    assert [op for op in ops(ours) if op not in ("Neg", "Identity", "Concat")] == chosen
    np.testing.assert_array_equal(run(ours), wanted)


def test_a_size_that_is_free_decides_nothing() -> None:
    """`if x.size(0) == 1` depends on the batch, and stays."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("Equal", ["shape", "one_row"], ["decided"]),
        helper.make_node(
            "If", ["decided"], ["y"], then_branch=branch("t", "Add"), else_branch=branch("e", "Mul")
        ),
    ]
    tensors: dict[str, Array] = {
        "one": np.array([1, 2, 3], np.float32),
        "one_row": np.array([1], np.int64),
    }
    ours = model(nodes, tensors)
    wanted = [run(ours, batch) for batch in (1, 2)]
    fold_constants(ours)
    assert "If" in ops(ours)
    for batch, value in zip((1, 2), wanted, strict=True):
        np.testing.assert_array_equal(run(ours, batch), value)


@pytest.mark.parametrize("turns", [1, 2])
def test_a_loop_of_one_turn_is_its_body(turns: int) -> None:
    """One turn is written out, with what it carries and what it stacks; two stay a Loop."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried", "one"], ["next"]),
            helper.make_node("Mul", ["next", "next"], ["row"]),
            helper.make_node("Identity", ["go_on"], ["again"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, X),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, X),
            helper.make_tensor_value_info("row", TensorProto.FLOAT, X),
        ],
    )
    nodes = [
        helper.make_node("Loop", ["turns", "", "x"], ["last", "rows"], body=body),
        helper.make_node("Add", ["last", "rows"], ["y"]),
    ]
    tensors: dict[str, Array] = {
        "one": np.array([1, 2, 3], np.float32),
        "turns": np.array(turns, np.int64),
    }
    ours = model(nodes, tensors)
    wanted = run(ours)
    fold_constants(ours)
    assert ("Loop" in ops(ours)) == (turns == 2)
    np.testing.assert_array_equal(run(ours), wanted)


def test_a_scalar_stays_a_scalar() -> None:
    """A folded index without axes takes the axis away, as before."""
    nodes = [
        helper.make_node("Sub", ["two", "two"], ["index"]),
        helper.make_node("Gather", ["x", "index"], ["y"], axis=1),
    ]
    ours = model(nodes, {"two": np.array(2, np.int64)})
    fold_constants(ours)
    assert ops(ours) == ["Gather"]
    assert run(ours).shape == (2,)


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_a_draw_is_not_made_beforehand(op: str) -> None:
    """What is drawn like a constant is drawn anew at each run; what is computed of one is not."""
    nodes = [
        helper.make_node("Mul", ["half", "half"], ["quarter"]),
        helper.make_node(op, ["quarter"], ["drawn"]),
        helper.make_node("Add", ["x", "drawn"], ["y"]),
    ]
    ours = model(nodes, {"half": np.full(3, 0.5, np.float32)})
    fold_constants(ours)
    assert ops(ours) == [op, "Add"]


def test_a_prefix_reaches_into_branches() -> None:
    """Names from outside are renamed where a branch reads them."""
    nodes = [
        helper.make_node(
            "If", ["yes"], ["y"], then_branch=branch("t", "Add"), else_branch=branch("e", "Mul")
        )
    ]
    ours = model(nodes, {"one": np.array([1, 2, 3], np.float32), "yes": np.array(True)})
    renamed = prefixed(ours, "file/")
    assert [v.name for v in (*renamed.graph.input, *renamed.graph.output)] == ["file/x", "file/y"]
    np.testing.assert_array_equal(run(renamed), run(ours))


def test_doubles_become_floats_everywhere() -> None:
    """Weights, casts and constants; the same numbers to float32 rounding."""
    half = numpy_helper.from_array(np.array(0.5), "half")
    nodes = [
        helper.make_node("Constant", [], ["half"], value=half),
        helper.make_node("Cast", ["x"], ["low"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["low"], ["high"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["high", "half"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "W"], ["y"]),
    ]
    ours = model(nodes, {"W": np.ones((3, 2))}, TensorProto.DOUBLE)
    wanted = run(ours)
    as_float32(ours.graph)
    found = run(ours)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_an_operator_whose_meaning_moved_is_not_relabelled() -> None:
    """At opset 12 Squeeze's axes are an attribute; at ours an input: it is converted."""
    node = helper.make_node("Unsqueeze", ["x"], ["y"], axes=[1])
    old = model([node], {})
    old.opset_import[0].version = 12
    new = at_our_opset(old, "old.onnx")
    assert new.opset_import[0].version == 21
    assert len(next(n for n in new.graph.node if n.op_type == "Unsqueeze").input) == 2
    np.testing.assert_array_equal(run(new), run(old))
