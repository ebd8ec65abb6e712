"""The class of a window's middle, error rates by hand, and a classifier through the real loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.classification import Classification, error_rate, most_frequent, nearest_profile
from models.classifier import BidirectionalClassifier
from models.data import Series
from models.fitting import Settings, fit
from models.shapes import LabelledSeries


def signs() -> LabelledSeries:
    """Runs of 30 steps at 1 and of 20 at -1; the class says which: 1 for 1."""
    labels = (np.arange(1000) % 50 < 30).astype(np.int64)
    values = (2 * labels[:, None] - 1).astype(np.float32)
    series = Series("signs", "1", values, 1, train_end=600, validation_end=750)
    return LabelledSeries(series, labels, ("minus", "plus"))


class Middle(nn.Module):
    """Sure of the sign of the step in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        middle = x[:, x.shape[1] // 2]
        return torch.cat((-middle, middle), dim=1) * 100


@pytest.mark.parametrize("window", [6, 7])
def test_the_class_is_that_of_the_middle(window: int) -> None:
    """Whoever looks there is always right; the frequent class, plus, is wrong for 40 % of steps."""
    task = Classification(signs, window=window)
    (score,) = task.score(Middle())
    assert score.model == 0
    assert score.naive["most frequent"] == pytest.approx(40, abs=1)
    assert task.validation_loss(Middle()) == pytest.approx(0, abs=1e-6)
    assert task.loss(Middle(), 8, np.random.default_rng(0)).item() == pytest.approx(0, abs=1e-6)


def test_baselines_and_rate_are_those_worked_out_by_hand() -> None:
    """Sorted, class 0 has (0, 2) on average and class 1 (1, 1): order does not matter."""
    train_x = np.array([[2, 0], [0, 2], [1, 1]], np.float32)[..., None]
    train_labels = np.array([0, 0, 1])
    x = np.array([[1.9, 0.1], [0.9, 1.1], [0.2, 1.9]], np.float32)[..., None]
    assert nearest_profile(train_x, train_labels, x).tolist() == [0, 1, 0]
    assert most_frequent(train_labels, 2).tolist() == [0, 0]
    assert error_rate(np.array([0, 1, 0]), np.array([0, 0, 0])) == pytest.approx(100 / 3)


def test_the_pipeline_names_the_classes() -> None:
    """In the order of the logits, beside the scaling of x; logits are not scaled."""
    pipeline = Classification(signs, window=6).finished_pipeline(Middle()).to_json()
    assert pipeline["classes"] == ["minus", "plus"]
    assert pipeline["x"]["mean"] == [pytest.approx(0.2)]
    assert "y" not in pipeline


def test_the_classifier_decides_on_the_last_state_of_each_direction() -> None:
    """Forwards that is after the last step, backwards after the first: two one-way LSTMs."""
    torch.manual_seed(0)
    model = BidirectionalClassifier(2, 4, 3)
    x = torch.randn(5, 6, 2)
    weights = model.lstm.state_dict()
    states = []
    for suffix, window in (("", x), ("_reverse", x.flip(1))):
        one_way = nn.LSTM(2, 4, batch_first=True)
        one_way.load_state_dict({name: weights[name + suffix] for name in one_way.state_dict()})
        states.append(one_way(window)[1][0][0])
    expected = model.fc(torch.cat(states, dim=1))
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=0)


def test_one_epoch_of_the_real_loop_teaches_the_signs(tmp_path: Path) -> None:
    """Better than always the more frequent."""
    torch.manual_seed(0)
    task = Classification(signs, window=8)
    model = BidirectionalClassifier(1, 8, 2)
    settings = Settings(epochs=1, batches=60, batch_size=16, learning_rate=0.03)
    checkpoint = tmp_path / "weights.safetensors"
    fit(model, task, settings, np.random.default_rng(0), checkpoint, lambda _: None)
    (score,) = task.score(model)
    assert score.model < 0.9 * score.naive["most frequent"]
    assert checkpoint.is_file()
