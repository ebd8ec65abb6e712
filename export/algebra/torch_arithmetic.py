"""The equations of a cell in torch, in the dtype of its values."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from export.algebra.cells import Arithmetic
from export.algebra.pointwise import FUNCTIONS


class TorchArithmetic(Arithmetic[Tensor]):
    """All but the affine maps, which whoever uses it keeps."""

    def split(self, value: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
        return torch.split(value, list(sizes), dim=1)

    def apply(self, function: str, *arguments: Tensor, constants: Sequence[float] = ()) -> Tensor:
        return FUNCTIONS[function].torch(*arguments, *constants)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def subtract(self, a: Tensor, b: Tensor) -> Tensor:
        return a - b

    def weigh(self, value: Tensor, weights: np.ndarray) -> Tensor:
        return value * torch.tensor(weights, dtype=value.dtype)
