"""The task of reading text: after each character, how likely each next one is.

Judged by perplexity: a model of perplexity 5 is as unsure as if it chose evenly among 5 characters.

Shape letters: B batch, T time, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.crops import evenly_spaced, random_crops
from models.scaling import Pipeline
from models.scores import Score
from models.text import UNKNOWN, Text

Ids = NDArray[np.int64]

VALIDATION_CROPS = 64
CHUNK = 500  # characters of the held-out text at a time; the state is carried over


@dataclass(frozen=True)
class Language:
    """Forecast the next character.

    Args:
        load: reads the text; called once, when it is first needed.
        steps: characters of a training crop.
    """

    load: Callable[[], Text]
    steps: int

    @cached_property
    def text(self) -> Text:
        return self.load()

    @property
    def data_name(self) -> str:
        return self.text.name

    @property
    def window(self) -> None:
        return None

    @property
    def holdout(self) -> Ids:
        return self.text.holdout

    def finished_pipeline(self, model: nn.Module) -> Pipeline:
        return Pipeline(vocabulary=self.text.vocabulary, unknown=UNKNOWN)

    def loss(self, model: nn.Module, batch: int, rng: np.random.Generator) -> Tensor:
        return _cross_entropy(model, random_crops(self.text.train, self.steps + 1, batch, rng))

    def validation_loss(self, model: nn.Module) -> float:
        crops = evenly_spaced(self.text.validation, self.steps + 1, VALIDATION_CROPS)
        with torch.no_grad():
            return _cross_entropy(model, crops).item()

    def score(self, model: nn.Module) -> list[Score]:
        """Perplexity of the held-out text, read in one go, next to counts of characters."""
        train, holdout, size = self.text.train, self.text.holdout, len(self.text.vocabulary)
        return [
            Score(
                name="perplexity",
                unit="characters",
                model=math.exp(stream_cross_entropy(model, holdout)),
                naive={
                    "unigram": unigram_perplexity(train, holdout, size),
                    "bigram": bigram_perplexity(train, holdout, size),
                },
                measure="perplexity",
            )
        ]


def _cross_entropy(model: nn.Module, crops: Ids) -> Tensor:
    """Mean over all characters of (B, T + 1) but the first of each row, in nats."""
    ids = torch.from_numpy(crops)
    logits, _ = model(ids[:, :-1], model.init_hidden(len(ids)))  # type: ignore[operator]
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def stream_cross_entropy(model: nn.Module, ids: Ids) -> float:
    """Mean over a text of all its characters but the first, in nats, the state carried on."""
    hidden = model.init_hidden(1)  # type: ignore[operator]
    tokens = torch.from_numpy(ids)[None]
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, CHUNK):
            x = tokens[:, start : min(start + CHUNK, len(ids) - 1)]
            y = tokens[0, start + 1 : start + 1 + x.shape[1]]
            logits, hidden = model(x, hidden)
            total += nn.functional.cross_entropy(logits[0], y, reduction="sum").item()
    return total / (len(ids) - 1)


def unigram_perplexity(train: Ids, holdout: Ids, size: int) -> float:
    """By how often each character comes, one added to each count (Laplace)."""
    counts = np.bincount(train, minlength=size) + 1.0
    return _perplexity((counts / counts.sum())[holdout[1:]])


def bigram_perplexity(train: Ids, holdout: Ids, size: int) -> float:
    """By how often each character follows the one before it, one added to each count (Laplace)."""
    counts = np.ones((size, size))
    np.add.at(counts, (train[:-1], train[1:]), 1)
    likelihoods = counts / counts.sum(axis=1, keepdims=True)
    return _perplexity(likelihoods[holdout[:-1], holdout[1:]])


def _perplexity(likelihoods: NDArray[np.float64]) -> float:
    return float(np.exp(-np.log(likelihoods).mean()))
