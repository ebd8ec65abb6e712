"""What the training loop asks of a task; a new kind of model brings its own."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from models.scaling import Pipeline
from models.scores import Score


class Task(Protocol):
    """A data set and a purpose: what is learnt from what, and how well it was learnt."""

    @property
    def data_name(self) -> str:
        """What the data is, for tables."""
        ...

    @property
    def pipeline(self) -> Pipeline:
        """The scaling, fitted on the training split alone."""
        ...

    @property
    def holdout(self) -> NDArray[np.float32]:
        """(T, I) float32, raw units: the held-out input."""
        ...

    def loss(self, model: nn.Module, batch: int, rng: np.random.Generator) -> Tensor:
        """The scalar loss on ``batch`` random crops of the training split."""
        ...

    def validation_loss(self, model: nn.Module) -> float:
        """What the best weights are chosen by: a loss on fixed windows of the validation split."""
        ...

    def score(self, model: nn.Module) -> list[Score]:
        """The errors on held-out time, in raw units."""
        ...
