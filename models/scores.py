"""How a trained model did on held-out time, next to what needs no model."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MARGIN = 0.05  # share of the naive error: a lead below 5 % may be luck of the split


@dataclass(frozen=True)
class Score:
    """One error of the model, and the same error of each naive forecast.

    Args:
        name: which error, for tables.
        unit: of all the errors.
        model: the model's error; lower is better.
        naive: the errors of the naive forecasts, by name.
        measure: what kind of error, for tables.
    """

    name: str
    unit: str
    model: float
    naive: dict[str, float]
    measure: str = "RMSE"

    def failures(self) -> list[str]:
        """One line for each naive forecast that is not beaten by the margin."""
        return [
            f"{self.name} error is {self.model:.4g} {self.unit}, expected at most "
            f"{(1 - MARGIN) * error:.4g} ({1 - MARGIN:.0%} of `{name}`, {error:.4g})"
            for name, error in self.naive.items()
            if not self.model <= (1 - MARGIN) * error  # so written, NaN is a failure
        ]


def rmse(forecasts: NDArray[np.floating], target: NDArray[np.float32]) -> float:
    """Root mean squared error over all elements, in the unit of the arguments."""
    error = forecasts.astype(np.float64) - target.astype(np.float64)
    return float(np.sqrt(np.mean(error**2)))
