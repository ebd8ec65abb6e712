"""The task of forecasting from a window: what comes next, or the next ``horizon`` steps at once.

For models that take a window and give a forecast, ``model(x) -> y``, and start from zero each time.

Shape letters: B batch, T time, I input, O output.
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
from models.naive import last_value, mean_value, seasonal
from models.scaling import Pipeline, Scaler
from models.scores import Score, rmse

Array = NDArray[np.float32]

VALIDATION_WINDOWS = 256
SCORING_WINDOWS = 1000


def _itself(values: Array) -> Array:
    return values


@dataclass(frozen=True)
class WindowForecasting:
    """Forecast what follows a window.

    Args:
        load: reads the series; called once, when it is first needed.
        window: steps that the model sees in training.
        target: (T, I) to (T, O), raw units: what is forecast, step by step; the values themselves
            if not given.
        unit: of the target; that of the series if not given.
        horizon: steps that are forecast at once. The model gives (B, O) for one step and
            (B, horizon, O), or anything of as many elements, for more.
        long_window: where given, the error after so many steps is a score of its own. A model that
            is served as a stream sees far more steps than its training windows had.
        average_steps: where given, the mean of so many last steps is a naive forecast too.
        level_jitter: as in ``Forecasting``; of x and target alike, so only without ``target``.
    """

    load: Callable[[], Series]
    window: int
    target: Callable[[Array], Array] = _itself
    unit: str | None = None
    horizon: int = 1
    long_window: int | None = None
    average_steps: int | None = None
    level_jitter: float = 0.0

    @cached_property
    def series(self) -> Series:
        return self.load()

    @property
    def data_name(self) -> str:
        return self.series.name

    @property
    def holdout(self) -> Array:
        return self.series.holdout

    @cached_property
    def x_scaler(self) -> Scaler:
        return Scaler.fit(self.series.train)

    @cached_property
    def y_scaler(self) -> Scaler:
        return Scaler.fit(self.target(self.series.train))

    def finished_pipeline(self, model: nn.Module) -> Pipeline:
        return Pipeline(x=self.x_scaler, y=self.y_scaler)

    @cached_property
    def _train(self) -> Array:
        return self._both(self.series.train)

    @cached_property
    def _validation_crops(self) -> Array:
        values = self._both(self.series.validation)
        return evenly_spaced(values, self.window + self.horizon, VALIDATION_WINDOWS)

    def _both(self, raw: Array) -> Array:
        """Input and target side by side, (T, I + O), both standardised, so that a crop has both."""
        y = self.y_scaler.standardise(self.target(raw))
        return np.concatenate((self.x_scaler.standardise(raw), y), axis=1)

    def loss(self, model: nn.Module, batch: int, rng: np.random.Generator) -> Tensor:
        crops = random_crops(self._train, self.window + self.horizon, batch, rng)
        level = self.level_jitter * rng.standard_normal((batch, 1, 1), np.float32)
        return self._loss_on(model, crops + level)

    def validation_loss(self, model: nn.Module) -> float:
        with torch.no_grad():
            return self._loss_on(model, self._validation_crops).item()

    def _loss_on(self, model: nn.Module, crops: Array) -> Tensor:
        """Mean squared error, unitless, on (B, window + horizon, I + O)."""
        features = self.series.values.shape[1]
        x = torch.from_numpy(crops[:, : self.window, :features])
        y = torch.from_numpy(crops[:, self.window :, features:])
        return nn.functional.mse_loss(model(x).reshape(y.shape), y)

    def score(self, model: nn.Module) -> list[Score]:
        """Root mean squared error on held-out time, in raw units, for each length of window."""
        windows = [self.window] if self.long_window is None else [self.window, self.long_window]
        return [self._score_after(model, window) for window in windows]

    def _score_after(self, model: nn.Module, window: int) -> Score:
        raw = evenly_spaced(self.holdout, window + self.horizon, SCORING_WINDOWS)
        x = torch.from_numpy(self.x_scaler.standardise(raw[:, :window]))
        target = np.stack([self.target(row) for row in raw])
        history, future = target[:, :window], target[:, window:]
        with torch.no_grad():
            y = torch.cat([model(part) for part in torch.split(x, 100)]).reshape(future.shape)
        steps = "next step" if self.horizon == 1 else f"next {self.horizon} steps"
        return Score(
            name=f"{steps}, {window} seen",
            unit=self.unit or self.series.unit,
            model=rmse(self.y_scaler.restore(y), future),
            naive={name: rmse(values, future) for name, values in self._naive(history).items()},
        )

    def _naive(self, history: Array) -> dict[str, Array]:
        forecasts = {"last value": last_value(history, self.horizon)}
        if self.series.period_steps > 1:
            period = self.series.period_steps
            forecasts["seasonal"] = seasonal(history, self.horizon, period)
        if self.average_steps is not None:
            name = f"mean of {self.average_steps}"
            forecasts[name] = mean_value(history, self.horizon, self.average_steps)
        return forecasts
