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
    def window(self) -> int | None:
        """The steps that the model is trained to take at a time; None: a stream of any length."""
        ...

    @property
    def holdout(self) -> NDArray[np.float32] | NDArray[np.int64]:
        """(T, I) float32 in raw units, or (T,) int64 token ids: the held-out input."""
        ...

    def finished_pipeline(self, model: nn.Module) -> Pipeline:
        """What stands before and after the trained model; it sees no held-out time."""
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
