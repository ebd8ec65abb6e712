"""LSTM, GRU and RNN nodes of one step as plain operators, held against ONNX Runtime's own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.graphs.session import start_session
from export.onnx_in.cells import CELLS, unroll_cells
from tests.export.onnx_files import weights

Array = np.ndarray
BATCH, INPUTS, HIDDEN = 3, 4, 5
STATE = ["h"], ["h", "c"]


def one_node(
    op: str, states: list[str], tensors: Mapping[str, Array], **attributes: Any
) -> onnx.ModelProto:
    """A graph of one recurrent node over x (1, B, I); `P` and states only where they are given."""
    shape: list[int | str] = [1, "B", HIDDEN]
    names = ["x", "W", "R", "B" if "B" in tensors else "", "", *states]
    if "P" in tensors:
        names += [""] * (7 - len(names)) + ["P"]
    outputs = ["y", "h_n", "c_n"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, names, outputs, hidden_size=HIDDEN, **attributes)
    graph = helper.make_graph(
        [node],
        "cell",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "B", INPUTS]),
            *(helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in states),
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(value, n) for n, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def random_tensors(op: str, bias: bool = True, peepholes: bool = False) -> dict[str, Array]:
    rows = CELLS[op] * HIDDEN
    found = {"W": weights(1, rows, INPUTS), "R": weights(1, rows, HIDDEN, seed=1)}
    if bias:
        found["B"] = weights(1, 2 * rows, seed=2)
    if peepholes:
        found["P"] = weights(1, 3 * HIDDEN, seed=3)
    return found


def run(model: onnx.ModelProto) -> list[Array]:
    rng = np.random.default_rng(5)
    shapes = {"x": (1, BATCH, INPUTS), "h": (1, BATCH, HIDDEN), "c": (1, BATCH, HIDDEN)}
    feeds = {v.name: rng.standard_normal(shapes[v.name]) * 2 for v in model.graph.input}
    names = [value.name for value in model.graph.output]
    found: list[Array] = start_session(model).run(
        names, {name: value.astype(np.float32) for name, value in feeds.items()}
    )
    return found


@pytest.mark.parametrize(
    ("op", "states", "bias", "peepholes", "attributes"),
    [
        ("LSTM", ["h", "c"], True, False, {}),
        ("LSTM", ["h", "c"], False, False, {"direction": "forward", "input_forget": 0}),
        ("LSTM", ["h", "c"], True, True, {"activations": ["Sigmoid", "Tanh", "Tanh"]}),
        ("LSTM", [], True, False, {}),
        ("GRU", ["h"], True, False, {}),
        ("GRU", ["h"], True, False, {"linear_before_reset": 1}),
        ("GRU", [], True, False, {"linear_before_reset": 1}),
        ("GRU", [], True, False, {}),
        ("RNN", ["h"], True, False, {}),
        ("RNN", [], False, False, {}),
    ],
)
def test_a_node_of_one_step_is_products_and_gates(
    op: str, states: list[str], bias: bool, peepholes: bool, attributes: dict[str, Any]
) -> None:
    """No recurrent node is left, and every output is the node's to float32 rounding."""
    model = one_node(op, states, random_tensors(op, bias, peepholes), **attributes)
    wanted = run(model)
    unroll_cells(model)
    kinds = {node.op_type for node in model.graph.node}
    assert op not in kinds and "MatMul" in kinds
    for found, value in zip(run(model), wanted, strict=True):
        assert found.shape == value.shape
        np.testing.assert_allclose(found, value, atol=2e-6)


@pytest.mark.parametrize(
    "attributes",
    [
        {"clip": 0.5},
        {"input_forget": 1},
        {"activations": ["HardSigmoid", "Tanh", "Tanh"]},
        {"direction": "reverse"},
    ],
)
def test_another_kind_of_cell_stays_a_node(attributes: dict[str, Any]) -> None:
    """What is not an ordinary cell keeps ONNX Runtime's own arithmetic."""
    model = one_node("LSTM", ["h", "c"], random_tensors("LSTM"), **attributes)
    wanted = run(model)
    unroll_cells(model)
    assert [node.op_type for node in model.graph.node] == ["LSTM"]
    for found, value in zip(run(model), wanted, strict=True):
        np.testing.assert_array_equal(found, value)


def test_a_node_of_several_steps_stays() -> None:
    """Two steps in one node are no step."""
    model = one_node("GRU", ["h"], random_tensors("GRU"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    unroll_cells(model)
    assert [node.op_type for node in model.graph.node] == ["GRU"]
