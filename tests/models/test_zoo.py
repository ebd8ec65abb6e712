"""The zoo holds what it says, by name."""

import importlib

import numpy as np
import pytest
import torch

from models.char_rnn import CharRNN
from models.errors import UnknownModelError
from models.tables import count_parameters
from models.zoo import ENTRIES, ZOO, Entry, find


def test_the_models_are_there() -> None:
    """Each name once."""
    assert list(ZOO) == [
        "sine-cell",
        "sine-lstm",
        "series-cell",
        "series-lstm",
        "sine-gru",
        "series-stack",
        "bidirectional",
        "char-rnn",
        "anomaly-detector",
        "stock-predictor",
        "attention-lstm",
        "norm-lstm",
        "seq2seq",
        "transformer",
    ]
    assert len(ENTRIES) == len(ZOO)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_each_factory_is_importable_under_the_models_name(entry: Entry) -> None:
    """``models.zoo:sine_cell`` for sine-cell: the way in which export is told of it."""
    module = importlib.import_module("models.zoo")
    assert getattr(module, entry.name.replace("-", "_")) is entry.factory


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_each_model_fits_its_data(entry: Entry) -> None:
    """Two batches of training loss are finite and reach every parameter with a gradient."""
    torch.manual_seed(0)
    model = entry.factory()
    loss = entry.task.loss(model, 2, np.random.default_rng(0))
    assert torch.isfinite(loss)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_held_out_data_is_long_enough_to_prove_parity(entry: Entry) -> None:
    """At least 2,200 steps: float32 features, or int64 tokens."""
    holdout = entry.task.holdout
    assert len(holdout) >= 2200
    assert (str(holdout.dtype), holdout.ndim) in [("float32", 2), ("int64", 1)]


SHAPES = {
    "bidirectional": ((2, 48, 1), (2, 4)),
    "anomaly-detector": ((2, 24, 1), (2, 24, 1)),
    "stock-predictor": ((2, 30, 5), (2, 1)),
    "attention-lstm": ((2, 48, 1), (2, 1)),
    "norm-lstm": ((2, 48, 1), (2, 1)),
    "seq2seq": ((2, 48, 1), (2, 24, 1)),
    "transformer": ((2, 48, 1), (2, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_models_without_states_take_a_window_and_give_y_alone(name: str) -> None:
    """``forward(x) -> y``, as tutorials have it, on windows of the length in the report."""
    given, expected = SHAPES[name]
    entry = ZOO[name]
    assert entry.call == ("X -> Y" if entry.name == "anomaly-detector" else "X -> y")
    assert entry.task.window == given[1]
    assert entry.factory().eval()(torch.zeros(given)).shape == expected


@pytest.mark.parametrize("name", [name for name in ZOO if name not in SHAPES])
def test_models_with_states_take_them_and_give_them(name: str) -> None:
    """One y for each step, and states in the nesting that ``call`` says."""
    entry = ZOO[name]
    model = entry.factory().eval()
    assert entry.task.window is None
    if isinstance(model, CharRNN):
        y, state = model(torch.zeros(2, 3, dtype=torch.int64), model.init_hidden(2))
        assert y.shape == (2, 3, len(entry.task.finished_pipeline(model).vocabulary or ()))
    else:
        y, state = model(torch.zeros(2, 3, 1))
        assert y.shape == (2, 3, 1)
    nesting = {"X, h=None -> Y, h": 0, "X, (h, c)=None -> Y, (h, c)": 1}.get(entry.call, 2)
    depth = 0
    while not isinstance(state, torch.Tensor):
        assert len(state) == 2
        state, depth = state[0], depth + 1
    assert depth == nesting


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sine-cell", {"cell": (4224, 128), "head": (32, 1)}),
        ("sine-lstm", {"lstm": (4224, 256), "head": (32, 1)}),
        ("series-lstm", {"lstm": (49408, 1024), "head": (64, 1)}),
        ("sine-gru", {"cell": (3168, 96), "head": (32, 1)}),
        ("series-stack", {"cells": (4224 + 8192, 256), "head": (32, 1)}),
        ("bidirectional", {"lstm": (2 * 4224, 512), "fc": (256, 4)}),
        ("stock-predictor", {"lstm": (4736 + 8192, 512), "fc": (32, 1)}),
        ("anomaly-detector", {"encoder": (2400, 192), "decoder": (4608, 192), "fc": (24, 1)}),
        ("attention-lstm", {"lstm": (9408, 384), "attention": (48, 1), "fc": (48, 1)}),
        ("norm-lstm", {"lstm": (9408, 384), "bn": (0, 96), "fc": (48, 1)}),
    ],
)
def test_parameters_are_counted_part_by_part(
    name: str, expected: dict[str, tuple[int, int]]
) -> None:
    """4 H (H + I) weights a layer; 4 H biases, and twice that in nn.LSTM."""
    counts = count_parameters(ZOO[name].factory())
    assert {part: (n["weights"], n["biases"]) for part, n in counts.items()} == expected


def test_an_unknown_name_is_an_error_that_lists_the_names() -> None:
    """What came, and what there is to choose from."""
    with pytest.raises(
        UnknownModelError, match="no model is called `sine`; choose one of sine-cell"
    ):
        find("sine")
