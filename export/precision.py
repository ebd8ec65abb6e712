"""How precisely each layer's products are computed in a quantized variant.

A layer is a named product of the lowered model: `cell1.gates`, `y`, `state trace`. What is not
named in a plan is as `otherwise` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Precision(StrEnum):
    """From the least to the most precise."""

    ROWWISE = "rowwise"  # int8 weights and activations, no row's scale depends on another row
    FLOAT = "float"


@dataclass(frozen=True)
class Plan:
    """layer -> precision."""

    layers: Mapping[str, Precision] = field(default_factory=dict)
    otherwise: Precision = Precision.ROWWISE

    def of(self, layer: str) -> Precision:
        return self.layers.get(layer, self.otherwise)


ALL_ROWWISE = Plan()
