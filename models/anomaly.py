"""The task of noticing what is not as usual: reconstruct a window, and mind the error.

The model learns to say again what it was told, through a narrow place. What it was never told, it
says badly. The threshold is a quantile of the errors on fault-free validation time.

Shape letters: B batch, T time, I input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.crops import evenly_spaced, random_crops
from models.faults import FaultySeries
from models.scaling import Alarm, Pipeline, Scaler
from models.scores import Score

Array = NDArray[np.float32]
Errors = NDArray[np.float64]

QUANTILE = 0.99  # of calm windows; so one in a hundred is a false alarm


@dataclass(frozen=True)
class AnomalyDetection:
    """Reconstruct windows of sound time; a window with a fault in it should come out badly.

    Args:
        load: reads the series and its faults; called once, when it is first needed.
        window: steps that the model sees.
        level_jitter: as in ``Forecasting``.
    """

    load: Callable[[], FaultySeries]
    window: int
    level_jitter: float = 0.0

    @cached_property
    def data(self) -> FaultySeries:
        return self.load()

    @property
    def data_name(self) -> str:
        return self.data.series.name

    @property
    def holdout(self) -> Array:
        return self.data.series.holdout

    @cached_property
    def scaler(self) -> Scaler:
        return Scaler.fit(self.data.series.train)

    @cached_property
    def _train(self) -> Array:
        return self.scaler.standardise(self.data.series.train)

    @cached_property
    def _validation_windows(self) -> Array:
        return self._all_windows(self.data.series.validation)

    def _all_windows(self, raw: Array) -> Array:
        """Every window of (T, I), standardised."""
        return evenly_spaced(self.scaler.standardise(raw), self.window, len(raw))

    def finished_pipeline(self, model: nn.Module) -> Pipeline:
        errors = reconstruction_errors(model, self._validation_windows)
        threshold = float(np.quantile(errors, QUANTILE))
        alarm = Alarm(score="mse", threshold=threshold, quantile=QUANTILE)
        return Pipeline(x=self.scaler, y=self.scaler, alarm=alarm)

    def loss(self, model: nn.Module, batch: int, rng: np.random.Generator) -> Tensor:
        crops = random_crops(self._train, self.window, batch, rng)
        level = self.level_jitter * rng.standard_normal((batch, 1, 1), np.float32)
        x = torch.from_numpy(crops + level)
        return nn.functional.mse_loss(model(x), x)

    def validation_loss(self, model: nn.Module) -> float:
        return float(reconstruction_errors(model, self._validation_windows).mean())

    def score(self, model: nn.Module) -> list[Score]:
        """How well held-out windows with and without a fault are told apart."""
        windows = self._all_windows(self.holdout)
        faulty = evenly_spaced(self._faulty_holdout(), self.window, len(self.holdout))
        has_fault: NDArray[np.bool_] = np.any(faulty > 0, axis=(1, 2))
        calm = self._validation_windows
        model_errors = reconstruction_errors(model, windows)
        model_calm = reconstruction_errors(model, calm)
        detectors = {"z-score": z_scores, "largest jump": largest_jumps}
        naive = {name: (score(windows), score(calm)) for name, score in detectors.items()}
        return [
            Score(
                name="1 - AUC",
                unit="%",
                model=100 * (1 - auc(model_errors, has_fault)),
                naive={
                    name: 100 * (1 - auc(errors, has_fault)) for name, (errors, _) in naive.items()
                },
                measure="pairs misordered",
            ),
            Score(
                name="missed at the threshold",
                unit="%",
                model=missed(model_errors, has_fault, model_calm),
                naive={
                    name: missed(errors, has_fault, calm_errors)
                    for name, (errors, calm_errors) in naive.items()
                },
                measure="misses",
            ),
        ]

    def _faulty_holdout(self) -> Array:
        faulty = self.data.faulty[self.data.series.validation_end :]
        return faulty[:, None].astype(np.float32)


def reconstruction_errors(model: nn.Module, windows: Array) -> Errors:
    """The mean squared error of each of (N, T, I) windows, unitless: (N,)."""
    x = torch.from_numpy(windows)
    with torch.no_grad():
        y = torch.cat([model(part) for part in torch.split(x, 256)])
    errors: Errors = ((y - x).double() ** 2).mean(dim=(1, 2)).numpy()
    return errors


def z_scores(windows: Array) -> Errors:
    """How far each window goes from training's mean, in its standard deviations: (N,)."""
    scores: Errors = np.max(np.abs(windows), axis=(1, 2)).astype(np.float64)
    return scores


def largest_jumps(windows: Array) -> Errors:
    """The largest step from one value to the next in each window, unitless: (N,)."""
    jumps: Errors = np.max(np.abs(np.diff(windows, axis=1)), axis=(1, 2)).astype(np.float64)
    return jumps


def auc(errors: Errors, has_fault: NDArray[np.bool_]) -> float:
    """The share of pairs of a faulty and a calm window in which the faulty one errs more.

    The area under the ROC curve (Hanley & McNeil, 1982); a tie counts one half.
    """
    calm = np.sort(errors[~has_fault])
    below = np.searchsorted(calm, errors[has_fault], side="left")
    up_to = np.searchsorted(calm, errors[has_fault], side="right")
    return float((below + up_to).mean() / (2 * len(calm)))


def missed(errors: Errors, has_fault: NDArray[np.bool_], calm_errors: Errors) -> float:
    """The share of faulty windows that stay below the threshold of calm ones, %."""
    threshold = np.quantile(calm_errors, QUANTILE)
    return 100 * float(np.mean(errors[has_fault] <= threshold))
