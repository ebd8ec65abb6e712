"""How precisely each layer's products are computed in a quantized variant.

A layer is a named matrix of the lowered model: `lstm_0.recurrent` (what a cell multiplies its own h
by), `lstm_1.input` (what it takes of the cell below), `y`; on the general road `product_3_32x64`,
the fourth product, of 32 values and 64 results. What is not named in a plan is as `otherwise` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Precision(StrEnum):
    """From the least to the most precise."""

    ROWWISE = "rowwise"  # int8 weights and activations, no row's scale depends on another row
    WEIGHTS = "weights"  # int8 weights, made float when the model is loaded: a smaller file
    FLOAT = "float"

    @property
    def next(self) -> "Precision":
        """One step more precise; FLOAT is the last."""
        steps = list(Precision)
        return steps[min(steps.index(self) + 1, len(steps) - 1)]


@dataclass(frozen=True)
class Plan:
    """layer -> precision."""

    layers: Mapping[str, Precision] = field(default_factory=dict)
    otherwise: Precision = Precision.ROWWISE

    def of(self, layer: str) -> Precision:
        return self.layers.get(layer, self.otherwise)

    def moved(self, moves: Mapping[str, Precision]) -> "Plan":
        """The same with some layers at another precision."""
        return Plan({**self.layers, **moves}, self.otherwise)


ALL_ROWWISE = Plan()
