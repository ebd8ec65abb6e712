"""Loss, crops and errors of forecasts, each against a model whose forecasts are known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.data import Series
from models.forecasting import Forecasting, forecast


class Counter(nn.Module):
    """Forecasts ``x + 1``, plus the number of steps it has seen when ``drift`` says so."""

    def __init__(self, drift: float = 0.0) -> None:
        super().__init__()
        self.drift = drift

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seen = x.new_zeros(()) if state is None else state
        steps = seen + torch.arange(1, x.shape[1] + 1)
        return x + 1 + self.drift * steps[None, :, None], steps[-1]


def ramp(steps: int = 40) -> Series:
    """0, 1, 2, ...: forecast without an error by ``Counter`` in raw units."""
    values = np.arange(steps, dtype=np.float32)[:, None]
    return Series("ramp", "m", values, period_steps=3, train_end=20, validation_end=30)


def test_a_rollout_goes_on_from_its_own_forecasts_and_state() -> None:
    """After x = 5, 6 with a drift of 0.1 a step: 7.2 is fed back, then 8.5 with 3 steps seen."""
    one_step, closed_loop = forecast(Counter(drift=0.1), torch.tensor([[[5.0], [6.0]]]), 3)
    assert one_step.flatten().tolist() == pytest.approx([6.1, 7.2])
    assert closed_loop.flatten().tolist() == pytest.approx([7.2, 8.5, 9.9])


def test_the_loss_is_the_one_step_error_plus_the_weighted_closed_loop() -> None:
    """On 0, 1, 2, 3, 4 a model that always says 0 errs by 1, 2, 3 while real values come in, and by
    3, 4 in the rollout that begins after the value 2."""

    class Zero(nn.Module):
        def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
            return torch.zeros_like(x), None

    task = Forecasting(ramp, warmup=3, rollout=2, rollout_weight=0.5)
    crops = torch.arange(5.0)[None, :, None]
    expected = (1 + 4 + 9) / 3 + 0.5 * (9 + 16) / 2
    assert task._loss_on(Zero(), crops).item() == pytest.approx(expected)


def test_training_crops_are_standardised_by_the_training_split_alone() -> None:
    """The scaling is that of steps 0 to 19, whatever follows them."""
    task = Forecasting(ramp, warmup=3, rollout=2, rollout_weight=1.0)
    pipeline = task.finished_pipeline(Counter())
    assert task.scaler.mean.item() == pytest.approx(9.5)
    assert task.scaler.std.item() == pytest.approx(np.arange(20).std())
    assert pipeline.y is pipeline.x is task.scaler


def test_level_jitter_shifts_whole_crops() -> None:
    """A model that forecasts the last value has the same loss at any level: only shapes count."""

    class Last(nn.Module):
        def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
            self.seen = x
            return x, None

    model = Last()
    still = Forecasting(ramp, warmup=3, rollout=1, rollout_weight=1.0)
    loss = still.loss(model, 4, np.random.default_rng(0))
    levels = model.seen[:, 0, 0]
    shaken = Forecasting(ramp, warmup=3, rollout=1, rollout_weight=1.0, level_jitter=0.5)
    assert shaken.loss(model, 4, np.random.default_rng(0)).item() == pytest.approx(loss.item())
    assert (model.seen[:, 0, 0] - levels).abs().min() > 0.01


def sawtooth() -> Series:
    """0, 1, 2, 3 over and over, 400 steps: period 4."""
    values = (np.arange(400, dtype=np.float32) % 4)[:, None]
    return Series("sawtooth", "m", values, period_steps=4, train_end=100, validation_end=200)


class Persistence(nn.Module):
    """Forecasts the last value, so its errors are those of the naive forecast."""

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return x, None


def test_scores_on_a_sawtooth_are_those_worked_out_by_hand() -> None:
    """One step: the last value errs by 1, 1, 1 and 3. In closed loop a start at each of the four
    phases errs evenly over all pairs of them. Last period's value is always right."""
    task = Forecasting(sawtooth, warmup=8, rollout=2, rollout_weight=1.0)
    one_step, closed_loop = task.score(Persistence())
    assert one_step.name == "one-step"
    assert one_step.unit == "m"
    assert one_step.model == pytest.approx(np.sqrt((1 + 1 + 1 + 9) / 4), rel=1e-3)
    assert one_step.naive == {"last value": pytest.approx(one_step.model), "seasonal": 0}
    assert closed_loop.name == "50-step closed-loop"
    pairs = [(a - b) ** 2 for a in range(4) for b in range(4)]
    assert closed_loop.model == pytest.approx(np.sqrt(np.mean(pairs)), rel=0.05)
    assert closed_loop.naive == {"last value": pytest.approx(closed_loop.model), "seasonal": 0}


def test_the_pipeline_states_what_a_step_misses_on_the_validation_data() -> None:
    """In raw units: the last value errs by 1, 1, 1 and 3, and the ramp's forecaster by nothing."""
    task = Forecasting(sawtooth, warmup=8, rollout=2, rollout_weight=1.0)
    error = task.finished_pipeline(Persistence()).to_json()["error"]
    assert error == {"std": [pytest.approx(3**0.5, rel=0.02)]}

    class Next(nn.Module):
        def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
            return x + 1 / ramp_task.scaler.std.item(), None

    ramp_task = Forecasting(ramp, warmup=3, rollout=2, rollout_weight=1.0)
    error = ramp_task.finished_pipeline(Next()).to_json()["error"]
    assert error == {"std": [pytest.approx(0, abs=1e-5)]}


def test_a_model_that_knows_the_sawtooth_has_no_error_in_either_score() -> None:
    """Right targets for right forecasts: an index off by one would show as an error of 1."""

    class Knows(nn.Module):
        def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
            raw = (x * scaler.std.item() + scaler.mean.item()).round()
            return ((raw + 1) % 4 - scaler.mean.item()) / scaler.std.item(), None

    task = Forecasting(sawtooth, warmup=8, rollout=2, rollout_weight=1.0)
    scaler = task.scaler
    assert [score.model for score in task.score(Knows())] == pytest.approx([0, 0], abs=1e-5)
    assert task.validation_loss(Knows()) == pytest.approx(0, abs=1e-9)
