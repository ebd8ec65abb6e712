"""The loop stops when it should, keeps the best, and clips; on tasks with a known outcome."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import DivergedError, SettingError
from models.fitting import CLIP_NORM, Progress, Settings, fit
from models.scaling import Pipeline
from models.scores import Score

SETTINGS = Settings(epochs=10, batches=3, batch_size=2, learning_rate=0.1, weight_decay=0.0)


class Scripted:
    """A task whose validation losses are written beforehand, and whose gradient never changes."""

    data_name = "script"
    window = None
    holdout = np.zeros((1, 1), np.float32)

    def __init__(self, validation_losses: list[float], slope: float = 1.0) -> None:
        self.losses = iter(validation_losses)
        self.slope = slope
        self.validated: list[float] = []
        self.training: list[bool] = []

    def loss(self, model: nn.Module, batch: int, rng: np.random.Generator) -> Tensor:
        self.training.append(model.training)
        return self.slope * sum((p.sum() for p in model.parameters()), start=torch.zeros(()))

    def validation_loss(self, model: nn.Module) -> float:
        self.training.append(model.training)
        self.validated.append(model.get_parameter("weight").item())
        return next(self.losses)

    def score(self, model: nn.Module) -> list[Score]:
        return []

    def finished_pipeline(self, model: nn.Module) -> Pipeline:
        return Pipeline()


def one_weight() -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def run(
    task: Scripted,
    folder: Path,
    settings: Settings = SETTINGS,
    on_batch: Callable[[Progress], None] = lambda _: None,
) -> tuple[nn.Linear, tuple[int, float, int]]:
    model = one_weight().eval()  # as it might come from loading: the loop must turn dropout on
    result = fit(model, task, settings, np.random.default_rng(0), folder / "best", on_batch)
    return model, (result.best_epoch, result.best_loss, result.epochs)


def test_training_stops_early_and_the_best_weights_come_back(tmp_path: Path) -> None:
    """Best in epoch 2, three epochs without a better one: stopped after 5, with those weights."""
    task = Scripted([5, 1, 2, 3, 4, 0, 0, 0, 0, 0])
    model, summary = run(task, tmp_path, replace(SETTINGS, stop_epochs=3))
    assert summary == (2, 1, 5)
    assert model.weight.item() == task.validated[1]
    assert load_file(tmp_path / "best")["weight"].item() == task.validated[1]
    assert len(set(task.validated)) == 5
    assert not model.training


def test_training_ends_after_its_epochs_when_it_gets_better_to_the_last(tmp_path: Path) -> None:
    """Ten epochs of falling loss: the last is the best."""
    task = Scripted([10 - epoch for epoch in range(10)])
    model, summary = run(task, tmp_path)
    assert summary == (10, 1, 10)
    assert model.weight.item() == task.validated[-1]


def test_dropout_is_on_in_training_and_off_in_validation(tmp_path: Path) -> None:
    """Three batches in training mode, one validation in evaluation mode, and again."""
    task = Scripted([2, 1])
    run(task, tmp_path, replace(SETTINGS, epochs=2))
    assert task.training == [True, True, True, False] * 2


def test_the_learning_rate_is_halved_on_a_plateau(tmp_path: Path) -> None:
    """Two epochs without a better loss after the first: half the rate from the fourth on."""
    rates = {}
    settings = replace(SETTINGS, epochs=5, plateau_epochs=2)

    def note(progress: Progress) -> None:
        rates[progress.epoch] = progress.learning_rate

    run(Scripted([1, 1, 1, 1, 1]), tmp_path, settings, note)
    assert rates == {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.05, 5: 0.05}


def test_what_is_validated_is_an_average_of_the_way(tmp_path: Path) -> None:
    """Adam goes down by 0.1 a batch under a constant gradient; the average lags behind it."""
    task = Scripted([1])
    run(task, tmp_path, replace(SETTINGS, epochs=1, batches=3))
    first, second, third = -0.1, -0.2, -0.3
    average = 0.98 * (0.98 * first + 0.02 * second) + 0.02 * third
    assert task.validated == pytest.approx([average], rel=1e-4)


def test_gradients_are_clipped_to_norm_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of 1000 reaches the optimizer as one of norm 1; a gradient of 0.5 as it is."""
    norms = []
    step = torch.optim.Adam.step

    def spy(self: torch.optim.Adam, closure: None = None) -> None:
        norms.append(self.param_groups[0]["params"][0].grad.norm().item())
        step(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    settings = replace(SETTINGS, epochs=1, batches=1)
    run(Scripted([1], slope=1000.0), tmp_path, settings)
    run(Scripted([1], slope=0.5), tmp_path, settings)
    assert norms == pytest.approx([CLIP_NORM, 0.5], rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_training(tmp_path: Path, bad: float) -> None:
    """In training or in validation, with the epoch in which it happened."""
    with pytest.raises(DivergedError, match=f"the loss is {bad} in epoch 2; .*--learning-rate"):
        run(Scripted([1, bad]), tmp_path)
    with pytest.raises(DivergedError, match="in epoch 1"):
        run(Scripted([1], slope=bad), tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch_size", -1), ("learning_rate", float("nan")), ("weight_decay", -0.1)],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    """The error names the setting and the value."""
    with pytest.raises(SettingError, match=f"`{name}` is {value}, expected"):
        Settings(**{**asdict(SETTINGS), name: value})
