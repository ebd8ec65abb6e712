"""Standardisation: networks work on numbers near one, clients send raw units."""

from dataclasses import dataclass

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
class Pipeline:
    """What stands before and after the network: raw x in, raw y out."""

    x: Scaler
    y: Scaler

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        """The content of ``pipeline.json``."""
        return {"x": self.x.to_json(), "y": self.y.to_json()}
