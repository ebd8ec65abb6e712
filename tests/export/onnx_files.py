"""ONNX files as other people export them, and how their owners would run them.

`Owner.run` is the law: it feeds the file under ONNX Runtime as the file itself wants to be fed.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

Array = np.ndarray
INPUTS, HIDDEN, OUTPUTS = 3, 16, 2


class Predictor(nn.Module):
    """An LSTM and a Linear, the states taken and given."""

    def __init__(self, layers: int = 2, batch_first: bool = True) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, HIDDEN, layers, batch_first=batch_first)
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(x, (h, c))
        return self.head(y), h, c


class LastOnly(nn.Module):
    """y of the last step alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(INPUTS, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x, h)
        return self.head(y[:, -1]), h


class Cell(nn.Module):
    """A cell written by hand: one step, states of two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(INPUTS + HIDDEN, 4 * HIDDEN)
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        i, f, g, o = self.gates(torch.cat([x, h], dim=1)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h), h, c


class Loop(nn.Module):
    """A time loop over torch's cell, to be scripted: its file holds a Loop and a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(INPUTS, HIDDEN)
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ys = []
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t], (h, c))
            ys.append(self.head(h))
        return torch.stack(ys, 1), h, c


class Bidirectional(nn.Module):
    """Reads the sequence from both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, HIDDEN, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(x, (h, c))
        return y, h, c


class Tokens(nn.Module):
    """Token ids through an embedding and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.gru = nn.GRU(8, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 11)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.gru(self.table(x), h)
        return self.head(y), h


def export_torch(
    path: Path,
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    names: tuple[list[str], list[str]] | None = None,
    dynamic: Mapping[str, dict[int, str]] | None = None,
    dynamo: bool = False,
    opset: int | None = None,
) -> Path:
    """A file by one of torch's two exporters; `dynamic`: input -> axis -> its name."""
    ins, outs = names or (None, None)
    how: dict[str, object] = {"dynamo": dynamo, "input_names": ins, "output_names": outs}
    how["opset_version"] = opset
    if dynamic and dynamo:
        dims = {n: torch.export.Dim(n) for axes in dynamic.values() for n in axes.values()}
        how["dynamic_shapes"] = {
            name: {axis: dims[n] for axis, n in axes.items()} for name, axes in dynamic.items()
        }
    elif dynamic:
        how["dynamic_axes"] = {name: dict(axes) for name, axes in dynamic.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old exporter is deprecated, and talks
        torch.onnx.export(module.eval(), arguments, str(path), **how)  # type: ignore[arg-type]
    return path


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[int | str]]],
    outputs: Mapping[str, tuple[int, list[int | str]]],
    tensors: Mapping[str, Array],
    opset: int = 17,
) -> Path:
    """A file written by hand."""
    graph = helper.make_graph(
        nodes,
        "by_hand",
        [helper.make_tensor_value_info(n, *kind) for n, kind in inputs.items()],
        [helper.make_tensor_value_info(n, *kind) for n, kind in outputs.items()],
        [numpy_helper.from_array(value, n) for n, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def weights(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(dtype)


def write_packed(path: Path) -> Path:
    """As voice activity detectors are: a state (2, B, H), a scalar rate that picks a branch."""
    h2 = 4 * HIDDEN

    def branch(name: str, scale: float) -> onnx.GraphProto:
        out = f"{name}_x"
        return helper.make_graph(
            [
                helper.make_node("Constant", [], ["scale"], value_float=scale),
                helper.make_node("Mul", ["input", "scale"], [out]),
            ],
            name,
            [],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["b", INPUTS])],
        )

    nodes = [
        helper.make_node("Equal", ["sr", "rate"], ["is_16k"]),
        helper.make_node(
            "If", ["is_16k"], ["scaled"], then_branch=branch("t", 1.0), else_branch=branch("e", 2.0)
        ),
        helper.make_node("Split", ["state"], ["h0", "c0"], axis=0),
        helper.make_node("Unsqueeze", ["scaled", "zero"], ["sequence"]),
        helper.make_node(
            "LSTM", ["sequence", "W", "R", "B", "", "h0", "c0"], ["", "h", "c"], hidden_size=HIDDEN
        ),
        helper.make_node("Concat", ["h", "c"], ["stateN"], axis=0),
        helper.make_node("Squeeze", ["h", "zero"], ["top"]),
        helper.make_node("Gemm", ["top", "V", "d"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["output"]),
    ]
    tensors = {
        "rate": np.array(16000, np.int64),
        "zero": np.array([0], np.int64),
        "W": weights(1, h2, INPUTS),
        "R": weights(1, h2, HIDDEN, seed=1),
        "B": weights(1, 2 * h2, seed=2),
        "V": weights(HIDDEN, 1, seed=3),
        "d": weights(1, seed=4),
    }
    state: tuple[int, list[int | str]] = (TensorProto.FLOAT, [2, "b", HIDDEN])
    return save(
        path,
        nodes,
        {
            "input": (TensorProto.FLOAT, ["b", INPUTS]),
            "state": state,
            "sr": (TensorProto.INT64, []),
        },
        {"output": (TensorProto.FLOAT, ["b", 1]), "stateN": state},
        tensors,
    )


def write_gru(path: Path, linear_before_reset: int) -> Path:
    """A GRU node over (T, B, I), the state (1, B, H)."""
    nodes = [
        helper.make_node(
            "GRU",
            ["x", "W", "R", "B", "", "h0"],
            ["ys", "hn"],
            hidden_size=HIDDEN,
            linear_before_reset=linear_before_reset,
        ),
        helper.make_node("Squeeze", ["ys", "one"], ["y"]),
    ]
    tensors = {
        "W": weights(1, 3 * HIDDEN, INPUTS),
        "R": weights(1, 3 * HIDDEN, HIDDEN, seed=1),
        "B": weights(1, 6 * HIDDEN, seed=2),
        "one": np.array([1], np.int64),
    }
    state: tuple[int, list[int | str]] = (TensorProto.FLOAT, [1, "n", HIDDEN])
    return save(
        path,
        nodes,
        {"x": (TensorProto.FLOAT, ["t", "n", INPUTS]), "h0": state},
        {"y": (TensorProto.FLOAT, ["t", "n", HIDDEN]), "hn": state},
        tensors,
        opset=14,
    )


def write_elman(
    path: Path,
    dtype: str = "float32",
    state: tuple[str, str] = ("h_in", "h_out"),
    out: int = HIDDEN,
) -> Path:
    """h = tanh(x W + h R), one step, by plain operators; y = h V."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["xw"]),
        helper.make_node("MatMul", [state[0], "R"], ["hr"]),
        helper.make_node("Add", ["xw", "hr"], ["z"]),
        helper.make_node("Tanh", ["z"], ["h"]),
        helper.make_node("MatMul", ["h", "V"], ["y"]),
        helper.make_node(
            "Slice" if out < HIDDEN else "Identity",
            ["h", "a", "b", "k"] if out < HIDDEN else ["h"],
            [state[1]],
        ),
    ]
    tensors = {
        "W": weights(INPUTS, HIDDEN, dtype=dtype),
        "R": weights(HIDDEN, HIDDEN, seed=1, dtype=dtype),
        "V": weights(HIDDEN, OUTPUTS, seed=2, dtype=dtype),
    }
    if out < HIDDEN:
        tensors |= {n: np.array([v], np.int64) for n, v in (("a", 0), ("b", out), ("k", 1))}
    return save(
        path,
        nodes,
        {"x": (kind, ["n", INPUTS]), state[0]: (kind, ["n", HIDDEN])},
        {"y": (kind, ["n", OUTPUTS]), state[1]: (kind, ["n", out])},
        tensors,
    )


def write_flat(path: Path) -> Path:
    """An Elman cell of one row without a batch axis: x (I,), h (H,)."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["xw"]),
        helper.make_node("MatMul", ["h", "R"], ["hr"]),
        helper.make_node("Add", ["xw", "hr"], ["z"]),
        helper.make_node("Tanh", ["z"], ["h_out"]),
        helper.make_node("MatMul", ["h_out", "V"], ["y"]),
    ]
    tensors = {
        "W": weights(INPUTS, HIDDEN),
        "R": weights(HIDDEN, HIDDEN, seed=1),
        "V": weights(HIDDEN, OUTPUTS, seed=2),
    }
    state: tuple[int, list[int | str]] = (TensorProto.FLOAT, [HIDDEN])
    return save(
        path,
        nodes,
        {"x": (TensorProto.FLOAT, [INPUTS]), "h": state},
        {"y": (TensorProto.FLOAT, [OUTPUTS]), "h_out": state},
        tensors,
    )


@dataclass
class Owner:
    """Runs a file step by step or whole, in its own axes."""

    path: Path
    feed: Callable[[Array, dict[str, Array]], dict[str, Array]]  # x (T, I) of one row, states
    states: dict[str, tuple[str, Array]]  # input -> its output, where it begins
    y: str
    y_time: int | None  # y's time axis
    steps: int | None = None  # in one call; None: all
    take: Callable[[Array], Array] = lambda y: y  # of a file fixed at several rows: one of them

    def run(self, x: Array) -> Array:
        """y (T, ...) of one row x (T, ...); of the last step of each call if y has no time axis."""
        session = ort.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        states = {name: start for name, (_, start) in self.states.items()}
        outputs = [self.y, *(out for out, _ in self.states.values())]
        ys = []
        size = self.steps or len(x)
        for at in range(0, len(x), size):
            y, *new = session.run(outputs, self.feed(x[at : at + size], states))
            states = dict(zip(states, new, strict=True))
            y = self.take(y)
            count = min(size, len(x) - at)
            if self.y_time is None:
                ys.append(y.reshape(1, -1))
            else:
                ys.append(np.moveaxis(y, self.y_time, 0).reshape(count, -1))
        return np.concatenate(ys)
