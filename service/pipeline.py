"""Pre- and post-processing of an artifact: between the client's raw units and the model's.

Scaling is computed in float64 and only then cast to the port's dtype: a sensor that reads
101325 +- 0.01 keeps its digits.
"""

import math
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

Array = np.ndarray


def _finite(values: list[float]) -> list[float]:
    if not values or not all(math.isfinite(v) for v in values):
        raise ValueError(f"expected a non-empty list of finite numbers, got {values}")
    return values


Numbers = Annotated[list[float], AfterValidator(_finite)]


class Scaling(BaseModel):
    """Standardisation of one port, per feature: model = (raw - mean) / std."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: Numbers  # raw units
    std: Numbers  # raw units, > 0

    @model_validator(mode="after")
    def _check(self) -> "Scaling":
        if len(self.mean) != len(self.std):
            raise ValueError(f"`mean` has {len(self.mean)} features, `std` has {len(self.std)}")
        if min(self.std) <= 0:
            raise ValueError(f"`std` must be positive, got {self.std}")
        return self


class Pipeline(BaseModel):
    """What stands before and after the model; an absent part leaves its port as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    x: Scaling | None = None
    y: Scaling | None = None

    def encode(self, x: Array) -> Array:
        """Raw x (..., I), raw units -> (..., I) float64, standardised (unitless). A copy."""
        if self.x is None:
            return np.array(x)
        return (np.asarray(x, np.float64) - self.x.mean) / self.x.std

    def decode(self, y: Array) -> Array:
        """The model's y (..., O), standardised -> (..., O) float64, raw units."""
        if self.y is None:
            return y
        return y.astype(np.float64) * self.y.std + self.y.mean
