"""The task of forecasting a series one step ahead, and many steps by feeding forecasts back.

One-step error alone is easy to please: for weather, "as it was an hour ago" is hard to beat, and a
model that learns little more drifts when it must go on from its own forecasts. So the loss has both
terms: the one-step error while real values come in, and the error of a closed-loop rollout that
follows them. Bengio et al., "Scheduled Sampling" (2015), argue the same need; here the whole
rollout is the model's own, and the gradient goes back through it.

Shape letters: B batch, T time, I input; a forecast has the features of its input, so O = I.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.crops import evenly_spaced, random_crops
from models.data import Series
from models.naive import last_value, seasonal
from models.scaling import Pipeline, Scaler
from models.scores import Score, rmse

Array = NDArray[np.float32]

HORIZON = 50  # steps of closed loop on which a model is scored, and chosen by its validation loss
VALIDATION_WINDOWS = 64
SCORING_WINDOWS = 400


@dataclass(frozen=True)
class Forecasting:
    """Forecast the next step of a series.

    Args:
        load: reads the series; called once, when it is first needed.
        warmup: real steps before a rollout begins, in training and in scoring; a period or more.
        rollout: closed-loop steps in the training loss. Fewer than are scored make for quicker
            batches, and more of them; that the rest holds is what the validation loss looks after.
        rollout_weight: of the closed-loop term; the one-step term has weight 1. Where a single step
            is far easier than many, less than 1 balances the two.
        level_jitter: standard deviation (unitless) of a constant that is added to each training
            crop. Where the level wanders, as it does with the seasons, a model that has seen a part
            of the levels learns the shape of a day at all of them.
    """

    load: Callable[[], Series]
    warmup: int
    rollout: int
    rollout_weight: float
    level_jitter: float = 0.0

    @cached_property
    def series(self) -> Series:
        return self.load()

    @property
    def data_name(self) -> str:
        return self.series.name

    @property
    def window(self) -> None:
        return None

    @property
    def holdout(self) -> Array:
        return self.series.holdout

    @cached_property
    def scaler(self) -> Scaler:
        return Scaler.fit(self.series.train)

    def finished_pipeline(self, model: nn.Module) -> Pipeline:
        return Pipeline(x=self.scaler, y=self.scaler, error_std=self._error_std(model))

    def _error_std(self, model: nn.Module) -> NDArray[np.float64]:
        """(I,) of what one step misses on the validation data, in raw units."""
        raw = self.series.validation
        x = torch.from_numpy(self.scaler.standardise(raw))[None, :-1]  # (1, T - 1, I)
        with torch.no_grad():
            y, _ = forecast(model, x, 1)
        missed = raw[self.warmup + 1 :] - self.scaler.restore(y[0])[self.warmup :]
        return np.asarray(np.sqrt((missed**2).mean(axis=0)), np.float64)

    @cached_property
    def _train(self) -> Array:
        return self.scaler.standardise(self.series.train)

    @cached_property
    def _validation_crops(self) -> Tensor:
        values = self.scaler.standardise(self.series.validation)
        return torch.from_numpy(evenly_spaced(values, self.warmup + HORIZON, VALIDATION_WINDOWS))

    def loss(self, model: nn.Module, batch: int, rng: np.random.Generator) -> Tensor:
        crops = random_crops(self._train, self.warmup + self.rollout, batch, rng)
        level = self.level_jitter * rng.standard_normal((batch, 1, crops.shape[2]), np.float32)
        return self._loss_on(model, torch.from_numpy(crops + level))

    def validation_loss(self, model: nn.Module) -> float:
        with torch.no_grad():
            return self._loss_on(model, self._validation_crops).item()  # closed loop over HORIZON

    def _loss_on(self, model: nn.Module, crops: Tensor) -> Tensor:
        """Mean squared error, unitless: one step ahead, plus the weighted closed loop.

        Args:
            crops: (B, T, I), standardised; the closed loop begins after ``warmup`` steps.
        """
        horizon = crops.shape[1] - self.warmup
        one_step, closed_loop = forecast(model, crops[:, : self.warmup], horizon)
        real = crops[:, 1 : self.warmup + 1]
        ahead = crops[:, self.warmup :]
        loss = nn.functional.mse_loss(one_step, real)
        return loss + self.rollout_weight * nn.functional.mse_loss(closed_loop, ahead)

    def score(self, model: nn.Module) -> list[Score]:
        """One-step and closed-loop root mean squared error on held-out time, in raw units."""
        with torch.no_grad():
            return [self._one_step_score(model), self._closed_loop_score(model)]

    def _one_step_score(self, model: nn.Module) -> Score:
        """One stream through all of held-out time, its state carried from end to end."""
        raw = self.holdout
        x = torch.from_numpy(self.scaler.standardise(raw))[None, :-1]  # (1, T - 1, I)
        y, _ = forecast(model, x, 1)
        start = max(self.warmup, self.series.period_steps)  # the first step that all can forecast
        target = raw[start:]
        forecasts = {
            "last value": raw[start - 1 : -1],
            "seasonal": raw[start - self.series.period_steps : -self.series.period_steps],
        }
        return Score(
            name="one-step",
            unit=self.series.unit,
            model=rmse(self.scaler.restore(y[0])[start - 1 :], target),
            naive={name: rmse(values, target) for name, values in forecasts.items()},
        )

    def _closed_loop_score(self, model: nn.Module) -> Score:
        """Many starts; from each, a warm-up on real values and then forecasts fed back."""
        windows = evenly_spaced(self.holdout, self.warmup + HORIZON, SCORING_WINDOWS)
        history, target = windows[:, : self.warmup], windows[:, self.warmup :]
        x = torch.from_numpy(self.scaler.standardise(history))
        _, y = forecast(model, x, HORIZON)
        forecasts = {
            "last value": last_value(history, HORIZON),
            "seasonal": seasonal(history, HORIZON, self.series.period_steps),
        }
        return Score(
            name=f"{HORIZON}-step closed-loop",
            unit=self.series.unit,
            model=rmse(self.scaler.restore(y), target),
            naive={name: rmse(values, target) for name, values in forecasts.items()},
        )


def forecast(model: nn.Module, x: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Run on real values, then go on from the model's own forecasts.

    Args:
        model: ``model(x, state) -> (y, state)``, where None is the initial state.
        x: (B, T, I), standardised.
        horizon: steps of closed loop, 1 or more.
    Returns:
        The one-step forecasts while x came in, (B, T, I), and the closed-loop forecasts of the
        steps after it, (B, horizon, I). The last of the former is the first of the latter.
    """
    one_step, state = model(x, None)
    y = one_step[:, -1:]
    closed_loop = [y]
    for _ in range(horizon - 1):
        y, state = model(y, state)
        closed_loop.append(y)
    return one_step, torch.cat(closed_loop, dim=1)
