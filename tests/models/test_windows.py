"""Forecasts from windows, judged right, and trained through the real loop."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.data import Series
from models.fitting import Settings, fit
from models.naive import mean_value
from models.predictors import StockPredictor
from models.windows import Array, WindowForecasting


def sawtooth() -> Series:
    """0, 1, 2, 3 over and over, 400 steps: period 4."""
    values = (np.arange(400, dtype=np.float32) % 4)[:, None]
    return Series("sawtooth", "m", values, period_steps=4, train_end=100, validation_end=200)


def two_features() -> Series:
    """Feature 0 is 10 t, feature 1 is 3: their difference is the target."""
    t = np.arange(90, dtype=np.float32)
    values = np.stack((10 * t, np.full_like(t, 3)), axis=1)
    return Series("pair", "m", values, period_steps=1, train_end=30, validation_end=60)


def difference(values: Array) -> Array:
    return values[:, :1] - values[:, 1:]


class Knows(nn.Module):
    """Continues the sawtooth, whatever the window."""

    def __init__(self, task: WindowForecasting) -> None:
        super().__init__()
        self.task = task

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.task.x_scaler.mean.item(), self.task.x_scaler.std.item()
        last = (x[:, -1:] * std + mean).round()  # (B, 1, 1)
        ahead = torch.arange(1, self.task.horizon + 1)[None, :, None]
        return ((last + ahead) % 4 - mean) / std


@pytest.mark.parametrize("horizon", [1, 6])
def test_a_model_that_knows_the_sawtooth_has_no_error(horizon: int) -> None:
    """Right targets for right forecasts, at both lengths: an index off by one would show."""
    task = WindowForecasting(sawtooth, window=8, horizon=horizon, long_window=30)
    scores = task.score(Knows(task))
    assert [score.model for score in scores] == pytest.approx([0, 0], abs=1e-5)
    assert [score.name.split(", ")[1] for score in scores] == ["8 seen", "30 seen"]
    assert task.validation_loss(Knows(task)) == pytest.approx(0, abs=1e-9)
    loss = task.loss(Knows(task), 5, np.random.default_rng(0))
    assert loss.item() == pytest.approx(0, abs=1e-9)


def test_naive_errors_are_those_worked_out_by_hand() -> None:
    """On the sawtooth the last value errs by 1, 1, 1, 3, last period's by nothing, and the mean of
    four, 1.5, by 1.5, 0.5, 0.5, 1.5."""
    task = WindowForecasting(sawtooth, window=8, average_steps=4)
    (score,) = task.score(Knows(task))
    assert score.naive == {
        "last value": pytest.approx(np.sqrt((1 + 1 + 1 + 9) / 4), rel=1e-2),
        "seasonal": 0,
        "mean of 4": pytest.approx(np.sqrt((2.25 + 0.25 + 0.25 + 2.25) / 4), rel=1e-2),
    }


def test_the_mean_is_of_the_last_steps_alone() -> None:
    """Of 1, 2, 3, 5 the last two have mean 4."""
    history = np.array([[[1], [2], [3], [5]]], np.float32)
    assert mean_value(history, 3, 2)[..., 0].tolist() == [[4, 4, 4]]


def test_the_target_may_be_another_than_the_input() -> None:
    """The difference rises by 10 a step, so the last value errs by 10, in its own unit."""

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1:] == (5, 2)
            return torch.zeros(len(x), 1)

    task = WindowForecasting(two_features, window=5, target=difference, unit="K")
    (score,) = task.score(Last())
    assert score.naive == {"last value": pytest.approx(10)}
    assert score.unit == "K"
    train = 10 * np.arange(30) - 3.0  # a forecast of 0 standardised is their mean
    target = 10 * np.arange(65, 90) - 3.0
    assert score.model == pytest.approx(np.sqrt(np.mean((target - train.mean()) ** 2)), rel=1e-5)
    pipeline = task.finished_pipeline(Last())
    assert pipeline.to_json()["y"] == {"mean": [train.mean()], "std": [pytest.approx(train.std())]}
    assert len(pipeline.to_json()["x"]["mean"]) == 2


def test_level_jitter_shifts_window_and_target_together() -> None:
    """A model that forecasts the last value has the same loss at any level."""

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return x[:, -1]

    still = WindowForecasting(sawtooth, window=4)
    model = Last()
    loss = still.loss(model, 4, np.random.default_rng(0)).item()
    seen = model.seen
    shaken = replace(still, level_jitter=0.5).loss(model, 4, np.random.default_rng(0)).item()
    assert shaken == pytest.approx(loss, rel=1e-5)
    shift = model.seen - seen
    assert shift.std(dim=1).max().item() == pytest.approx(0, abs=1e-6)
    assert shift[:, 0].abs().min() > 0.01


def test_one_epoch_of_the_real_loop_teaches_the_sawtooth(tmp_path: Path) -> None:
    """The best weights are kept, and beat the last value."""
    torch.manual_seed(0)
    task = WindowForecasting(sawtooth, window=8)
    model = StockPredictor(input_size=1, hidden_size=8, num_layers=2, output_size=1, dropout=0.0)
    settings = Settings(epochs=1, batches=80, batch_size=16, learning_rate=0.03)
    checkpoint = tmp_path / "weights.safetensors"
    rng = np.random.default_rng(0)
    assert fit(model, task, settings, rng, checkpoint, lambda _: None).best_epoch == 1
    assert checkpoint.is_file()
    (score,) = task.score(model)
    assert score.model < score.naive["last value"]
