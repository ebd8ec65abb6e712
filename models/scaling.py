"""Standardisation: networks work on numbers near one, clients send raw units."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Scaler:
    """Subtracts the mean and divides by the standard deviation, feature by feature.

    Args:
        mean: (F,) float64, raw units.
        std: (F,) float64, raw units, above zero.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def fit(cls, values: NDArray[np.float32]) -> "Scaler":
        """Fit to (T, F) values in raw units. A feature that never varies is left at its scale."""
        mean = values.mean(axis=0, dtype=np.float64)
        std = values.std(axis=0, dtype=np.float64)
        return cls(mean, np.where(std > 0, std, 1.0))

    def standardise(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(..., F) raw units to (..., F) float32, unitless."""
        return ((values - self.mean) / self.std).astype(np.float32)

    def restore(self, values: Tensor) -> NDArray[np.float64]:
        """(..., F) unitless back to (..., F) float64, raw units."""
        return values.detach().numpy() * self.std + self.mean

    def to_json(self) -> dict[str, list[float]]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}


@dataclass(frozen=True)
class Alarm:
    """When an anomaly detector speaks up: its score is above ``threshold``.

    Args:
        score: how an input and its reconstruction become one number; ``mse`` is the mean, over
            the window and its features, of the squared error, standardised (unitless).
        threshold: the score that ``quantile`` of the fault-free validation windows do not exceed.
        quantile: so ``1 - quantile`` of calm windows are false alarms.
    """

    score: str
    threshold: float
    quantile: float


@dataclass(frozen=True)
class Pipeline:
    """What stands before and after the network. A part that is None is absent from the file.

    Args:
        x: raw input to the network's.
        y: the network's output to raw units.
        vocabulary: the tokens of x and of y, where x is integers and y holds one logit per token:
            the index in the list is the token's id.
        unknown: the token of the vocabulary that stands for what it does not have.
        classes: what each of the logits of y means.
        alarm: where y is a reconstruction of x.
        error_std: (F,) float64, raw units: where y forecasts the next x, the standard deviation of
            what it misses, on data that training did not see.
    """

    x: Scaler | None = None
    y: Scaler | None = None
    vocabulary: tuple[str, ...] | None = None
    unknown: str | None = None
    classes: tuple[str, ...] | None = None
    alarm: Alarm | None = None
    error_std: NDArray[np.float64] | None = None

    def to_json(self) -> dict[str, Any]:
        """The content of ``pipeline.json``."""
        content = {
            "x": self.x and self.x.to_json(),
            "y": self.y and self.y.to_json(),
            "vocabulary": self.vocabulary and list(self.vocabulary),
            "unknown": self.unknown,
            "classes": self.classes and list(self.classes),
            "alarm": self.alarm and asdict(self.alarm),
            "error": None if self.error_std is None else {"std": self.error_std.tolist()},
        }
        return {name: part for name, part in content.items() if part is not None}
