"""The zoo holds what it says, by name."""

import importlib

import pytest
import torch

from models.errors import UnknownModelError
from models.tables import count_parameters
from models.zoo import ENTRIES, ZOO, Entry, find


def test_the_four_models_are_there() -> None:
    """Both kinds of model on both kinds of data, each name once."""
    assert list(ZOO) == ["sine-cell", "sine-lstm", "series-cell", "series-lstm"]
    assert len(ENTRIES) == len(ZOO)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_each_factory_is_importable_under_the_models_name(entry: Entry) -> None:
    """``models.zoo:sine_cell`` for sine-cell: the way in which export is told of it."""
    module = importlib.import_module("models.zoo")
    assert getattr(module, entry.name.replace("-", "_")) is entry.factory


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_each_model_takes_and_gives_one_feature(entry: Entry) -> None:
    """It fits its data: as many forecasts as features, one for each step."""
    features = entry.task.holdout.shape[1]
    y, _ = entry.factory()(torch.zeros(2, 3, features))
    assert y.shape == (2, 3, features)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sine-cell", {"cell": (4224, 128), "head": (32, 1)}),
        ("sine-lstm", {"lstm": (4224, 256), "head": (32, 1)}),
        ("series-lstm", {"lstm": (49408, 1024), "head": (64, 1)}),
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
