"""How a model goes on by itself: the y of a step becomes the x of the next, in one row or many.

Rules
- What is fed back is what a client feeds back who sends the replies of /predict as the next `x`:
  of text the chosen token, of a forecaster y in raw units. So both give the same bits.
- Refused, as nothing says what the next x would be: y that is classes, a score, or of another
  shape than x.
- Samples need chance. Text draws as `choose` says, a forecaster adds the `error` of its pipeline,
  step by step. Where neither is there, all samples would be the same, and that is refused.
- What a sample draws is a function of the seed, the session, its number and the step alone. The
  first one of a text draws what the session itself would.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from service.choice import Argmax, Sample, draw, likeliest, sample_uniforms, uniforms
from service.errors import CannotForecastError, RequestError
from service.model import Model
from service.reading import Wish

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Chance:
    """What the samples of one forecast are drawn from."""

    stream: tuple[str, ...]  # whose forecast it is, such as tenant and session id
    samples: int | None  # None: one row, and no list of samples in its lines
    seed: int | None  # None: that of the method

    @property
    def rows(self) -> int:
        return self.samples or 1


@dataclass(frozen=True, slots=True)
class Guess:
    """What stands at a step that has not come yet: as a line shows it, and as the model reads it.

    x is (M, ...) in the model's units, a row a sample.
    """

    shown: Mapping[str, object]
    x: Array


class Feedback(Protocol):
    """Of one forecast."""

    def guess(self, y: Array, step: int) -> Guess:
        """
        Args:
            y: (M, ...) in the model's units, finite: of `step`, a row a sample.
        Returns:
            What it says of the step after.
        Raises:
            NotFiniteError: y is too large to be an x.
        """
        ...


def open_feedback(model: Model, wish: Wish, chance: Chance) -> Feedback:
    """The feedback of one forecast.

    Raises:
        CannotForecastError: `why_not` says why, or all samples would be the same.
        RequestError: `seed` is given, and nothing is drawn.
    """
    if (reason := why_not(model)) is not None:
        raise CannotForecastError(
            f"{model.reference} cannot forecast: {reason}", model=model.reference
        )
    if _means_tokens(model):
        return _Text(model, _seeded(wish, chance), chance)
    return _Numbers(model, chance)


def why_not(model: Model) -> str | None:
    """Why a model cannot go on by itself, in words; None if it can."""
    manifest = model.artifact.manifest
    x, y = manifest.ports.x, manifest.ports.y
    if _means_tokens(model) or manifest.pipeline.feeds_numbers_back(x, y):
        return None
    match manifest.pipeline.y_means(y.shape[2:]):
        case "classes":
            found = "its y is classes, and its x is not"
        case "score":
            found = "its y is a score, and its x is not"
        case _:
            found = (
                f"its y is {y.dtype} of shape {list(y.shape)}, its x {x.dtype} of shape "
                f"{list(x.shape)}"
            )
    return f"{found}; only what it is told can be its next x, row by row, by POST /predict"


def _means_tokens(model: Model) -> bool:
    manifest = model.artifact.manifest
    return manifest.pipeline.y_means(manifest.ports.y.shape[2:]) == "tokens"


def _seeded(wish: Wish, chance: Chance) -> Wish:
    """`wish` with the forecast's own seed, if it has one."""
    if isinstance(wish.choose, Sample):
        update = {} if chance.seed is None else {"seed": chance.seed}
        return Wish(wish.fields, wish.choose.model_copy(update=update))
    _refuse_chance(chance, 'the likeliest token is taken; send `choose` with {"method": "sample"}')
    return wish


def _refuse_chance(chance: Chance, why: str) -> None:
    """Refuse samples, or a seed, where nothing is drawn."""
    if chance.rows > 1:
        raise CannotForecastError(
            f"`samples` is {chance.samples}, and all would be the same: {why}", got=chance.samples
        )
    if chance.seed is not None:
        raise RequestError(f"`seed` is {chance.seed}, and nothing is drawn: {why}")


class _Text:
    """The token that is chosen from y is the next x, as an id or one-hot."""

    def __init__(self, model: Model, wish: Wish, chance: Chance) -> None:
        self._model = model
        self._wish = wish
        self._chance = chance

    def guess(self, y: Array, step: int) -> Guess:
        ids = self._choose(y, step)
        shown: dict[str, object] = {}
        for field in self._wish.fields:
            each = self._model.decode(y) if field == "y" else self._tokens(ids)
            shown[field] = each if self._chance.samples else each[0]
        return Guess(shown, self._model.encode(ids))

    def _choose(self, y: Array, step: int) -> Array:
        how, chance = self._wish.choose, self._chance
        if isinstance(how, Argmax):
            return likeliest(y)
        first = uniforms(how.seed, chance.stream, step, 1)
        rest = sample_uniforms(how.seed, chance.stream, step, len(y))[1:, 0]
        return draw(y, how, np.concatenate([first, rest]))

    def _tokens(self, ids: Array) -> list[str]:
        vocabulary = self._model.artifact.manifest.pipeline.tokens
        return [] if vocabulary is None else vocabulary.tokens_of(ids)


class _Numbers:
    """y in raw units is the next x; of a sample, with an error added."""

    def __init__(self, model: Model, chance: Chance) -> None:
        error = model.artifact.manifest.pipeline.error
        if chance.samples is None or error is None:
            where = "the artifact's pipeline has no `error`, the spread of a one-step forecast"
            alone = "without `samples` a forecast is the model's own"
            _refuse_chance(chance, where if error is None else alone)
        self._model = model
        self._chance = chance
        self._std = None if chance.samples is None or error is None else np.array(error.std)

    def guess(self, y: Array, step: int) -> Guess:
        raw = self._model.decode(y)
        if self._std is not None:
            raw = raw + self._std * self._normals(raw.shape, step)
        shown = {"y": raw if self._chance.samples else raw[0]}
        return Guess(shown, self._model.encode(self._as_read(raw)))

    def _as_read(self, raw: Array) -> Array:
        """As a client reads it in JSON: float32 by its shortest digits, which scaling shows."""
        if raw.dtype == np.float64 or self._model.artifact.manifest.pipeline.x is None:
            return raw
        return raw.astype(str).astype(np.float64)

    def _normals(self, shape: Sequence[int], step: int) -> Array:
        """Standard normal numbers, by Box and Muller (1958)."""
        each = math.prod(shape[1:])
        seed = self._chance.seed or 0
        chances = sample_uniforms(seed, self._chance.stream, step, shape[0], 2 * each)
        radius = np.sqrt(-2.0 * np.log1p(-chances[:, :each]))
        return np.asarray(radius * np.cos(2.0 * np.pi * chances[:, each:])).reshape(shape)
