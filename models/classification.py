"""The task of telling classes apart: a window in, one logit per class out.

The class of a window is that of the step in its middle, so what comes after counts as much as what
came before: the task for a network that reads both ways.

Shape letters: B batch, T time, I input, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.crops import evenly_spaced, random_crops
from models.scaling import Pipeline, Scaler
from models.scores import Score
from models.shapes import LabelledSeries

Array = NDArray[np.float32]
Labels = NDArray[np.int64]

VALIDATION_WINDOWS = 512
SCORING_WINDOWS = 2000


@dataclass(frozen=True)
class Classification:
    """Say of which class the middle of a window is.

    Args:
        load: reads the series and its labels; called once, when it is first needed.
        window: steps that the model sees.
    """

    load: Callable[[], LabelledSeries]
    window: int

    @cached_property
    def data(self) -> LabelledSeries:
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

    def finished_pipeline(self, model: nn.Module) -> Pipeline:
        return Pipeline(x=self.scaler, classes=self.data.classes)

    @cached_property
    def _splits(self) -> tuple[Array, Array, Array]:
        """Train, validation, held-out: input and label side by side, so that a crop has both."""
        series = self.data.series
        x = self.scaler.standardise(series.values)
        labelled = np.concatenate((x, self.data.labels[:, None].astype(np.float32)), axis=1)
        train, validation, holdout = np.split(labelled, [series.train_end, series.validation_end])
        return train, validation, holdout

    def _pair(self, crops: Array) -> tuple[Array, Labels]:
        """(B, T, I + 1) to x (B, T, I), standardised, and the label of each middle, (B,)."""
        return crops[..., :-1], crops[:, self.window // 2, -1].astype(np.int64)

    def loss(self, model: nn.Module, batch: int, rng: np.random.Generator) -> Tensor:
        return self._loss_on(model, random_crops(self._splits[0], self.window, batch, rng))

    def validation_loss(self, model: nn.Module) -> float:
        crops = evenly_spaced(self._splits[1], self.window, VALIDATION_WINDOWS)
        with torch.no_grad():
            return self._loss_on(model, crops).item()

    def _loss_on(self, model: nn.Module, crops: Array) -> Tensor:
        x, labels = self._pair(crops)
        return nn.functional.cross_entropy(
            model(torch.from_numpy(np.ascontiguousarray(x))), torch.from_numpy(labels)
        )

    def score(self, model: nn.Module) -> list[Score]:
        """The share of held-out windows that are taken for another class."""
        x, labels = self._pair(evenly_spaced(self._splits[2], self.window, SCORING_WINDOWS))
        train_x, train_labels = self._pair(
            evenly_spaced(self._splits[0], self.window, len(self._splits[0]))
        )
        with torch.no_grad():
            chosen = model(torch.from_numpy(np.ascontiguousarray(x))).argmax(dim=1).numpy()
        return [
            Score(
                name="wrong class",
                unit="%",
                model=error_rate(chosen, labels),
                naive={
                    "most frequent": error_rate(most_frequent(train_labels, len(x)), labels),
                    "nearest profile": error_rate(
                        nearest_profile(train_x, train_labels, x), labels
                    ),
                },
                measure="wrong classes",
            )
        ]


def error_rate(chosen: Labels, labels: Labels) -> float:
    """How many of (N,) are not what they should be, %."""
    return 100 * float(np.mean(chosen != labels))


def most_frequent(train_labels: Labels, count: int) -> Labels:
    """The class that training saw most often, (count,) times."""
    return np.full(count, np.bincount(train_labels).argmax())


def nearest_profile(train_x: Array, train_labels: Labels, x: Array) -> Labels:
    """The class whose mean profile is the nearest; a profile is a window's values in rising order.

    So it knows how values are distributed, and nothing of when they come.

    Args:
        train_x: (N, T, I), standardised; train_labels: (N,).
        x: (M, T, I), standardised.
    Returns:
        (M,), the chosen classes.
    """
    profiles = np.sort(train_x, axis=1)
    means = np.stack([profiles[train_labels == k].mean(axis=0) for k in np.unique(train_labels)])
    distances = ((np.sort(x, axis=1)[:, None] - means) ** 2).sum(axis=(2, 3))  # (M, K)
    nearest: Labels = np.unique(train_labels)[distances.argmin(axis=1)]
    return nearest
