"""Pre- and post-processing of an artifact: between the client's raw units and the model's.

Scaling is computed in float64 and only then cast to the port's dtype: a sensor that reads
101325 +- 0.01 keeps its digits.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from service.choice import CHOOSE_FORM, Choose
from service.vocabulary import Vocabulary

Array = np.ndarray
Meaning = Literal["numbers", "tokens", "classes", "score"]

EXPECTED = (  # for those who write one by hand
    'expected an object of any of "x" and "y": {"mean": [..], "std": [..]}, one number a feature; '
    '"vocabulary": ["a", "b", ..], with "unknown": "?" one of it; "classes": ["calm", ..]; '
    f'"choose": {CHOOSE_FORM}; '
    '"error": {"std": [..]}, how far a forecast of the next step is off, one number a feature; '
    '"alarm": {"score": "y", "mse", "mae" or "max", "threshold": 0.5}'
)


def _finite(values: list[float]) -> list[float]:
    if not values or not all(math.isfinite(v) for v in values):
        raise ValueError(f"expected a non-empty list of finite numbers, got {values}")
    return values


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) < 2:
        raise ValueError(f"expected a list of at least two, got {list(names)}")
    seen: set[str] = set()
    for place, name in enumerate(names):
        if not name:
            raise ValueError(f"expected non-empty strings, got an empty one at position {place}")
        if name in seen:
            raise ValueError(f'expected each once, got "{name}" again at position {place}')
        seen.add(name)
    return names


Numbers = Annotated[list[float], AfterValidator(_finite)]
Names = Annotated[tuple[str, ...], AfterValidator(_unique)]


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

    @cached_property
    def arrays(self) -> tuple[Array, Array]:
        """Mean and std, (I,) float64: of lists NumPy makes them anew for every row."""
        return np.array(self.mean, np.float64), np.array(self.std, np.float64)


class Error(BaseModel):
    """How far a forecast of the next step is off, as measured on data that training never saw.

    What it misses is taken for Gaussian, independent from step to step and of feature to feature.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    std: Numbers  # raw units, >= 0, one a feature of y

    @model_validator(mode="after")
    def _check(self) -> "Error":
        if min(self.std) < 0:
            raise ValueError(f"`std` must not be negative, got {self.std}")
        return self


class Alarm(BaseModel):
    """When a detector of anomalies speaks up: at a step whose score is above the threshold.

    `score` says what the artifact's y is, one number a step: the module's own (`y`, in raw units),
    or the error of its reconstruction of x over the window, standardised (unitless), which export
    makes part of the graph: the mean of its squares (`mse`), of its absolute values (`mae`), or
    the greatest absolute value (`max`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    score: Literal["y", "mse", "mae", "max"]
    threshold: Annotated[float, Field(allow_inf_nan=False)]
    quantile: Annotated[float, Field(ge=0, le=1)] | None = None  # of calm scores: how it was found

    @property
    def is_reconstruction(self) -> bool:
        return self.score != "y"


class PortLike(Protocol):
    """What a pipeline looks at of a port."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> Sequence[int | str]: ...  # (B, T, ...)

    @property
    def ids(self) -> int | None: ...


class Pipeline(BaseModel):
    """What stands before and after the model; an absent part leaves its port as it is.

    With a `vocabulary` x is text, as ids or one-hot; a token that it has not is read as `unknown`,
    or refused where none is declared. y then holds one logit a token, if it has as many, or one a
    class of `classes`; `choose` says which is taken. `error` belongs to a model whose y forecasts
    its next x: samples of a forecast are drawn with it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    x: Scaling | None = None
    y: Scaling | None = None
    vocabulary: Names | None = None
    unknown: str | None = None
    classes: Names | None = None
    alarm: Alarm | None = None
    choose: Choose | None = None
    error: Error | None = None

    @model_validator(mode="after")
    def _check(self) -> "Pipeline":
        for fault, why in self._contradictions():
            if fault:
                raise ValueError(why)
        return self

    def _contradictions(self) -> list[tuple[bool, str]]:
        tokens, alarm = self.vocabulary or (), self.alarm
        reconstructs = alarm is not None and alarm.is_reconstruction
        return [
            (
                self.unknown is not None and self.unknown not in tokens,
                f'`unknown` is "{self.unknown}", expected one of the tokens of `vocabulary`',
            ),
            (
                bool(tokens and self.x),
                "`vocabulary` and a scaling of `x` contradict each other: x is text or numbers",
            ),
            (
                self.y is not None and len(self.y.mean) == len(tokens),
                "`vocabulary` and a scaling of `y` as long contradict each other: y is logits, "
                "which have no raw unit",
            ),
            (
                bool(self.classes and self.y),
                "`classes` and a scaling of `y` contradict each other: y is logits, which have no "
                "raw unit",
            ),
            (
                bool(self.classes and alarm),
                "`classes` and `alarm` contradict each other: y is logits or a score",
            ),
            (
                bool(tokens and reconstructs),
                "`vocabulary` and the score of a reconstruction contradict each other: tokens "
                "have no distance",
            ),
            (
                reconstructs and self.y not in (None, self.x),
                "a reconstruction is compared with x, so `y` must be scaled as `x` is, or left out",
            ),
            (
                self.choose is not None and not tokens and not self.classes,
                "`choose` has nothing to choose from; declare `vocabulary` or `classes`",
            ),
        ]

    @cached_property
    def tokens(self) -> Vocabulary | None:
        """The vocabulary, ready to read text with."""
        return None if self.vocabulary is None else Vocabulary(self.vocabulary, self.unknown)

    def y_means(self, tail: Sequence[int | str]) -> Meaning:
        """What y (B, T, *tail) holds at a step."""
        if self.classes is not None:
            return "classes"
        if self.alarm is not None:
            return "score"
        if self.vocabulary is not None and list(tail) == [len(self.vocabulary)]:
            return "tokens"
        return "numbers"

    def misfit(self, x: PortLike, y: PortLike) -> str | None:
        """Why it does not fit the model's ports, in words; None if it does."""
        scales_y = self.y if self.alarm is None or not self.alarm.is_reconstruction else None
        for what, scaling, port in (("x", self.x, x), ("y", scales_y, y)):
            if scaling and (len(port.shape) < 3 or port.shape[-1] != len(scaling.mean)):
                return (
                    f"the pipeline's `{what}` has {len(scaling.mean)} features, "
                    f"the module's {what} has shape {list(port.shape)}"
                )
        return self._misfit_of_x(x) or self._misfit_of_y(y) or self._misfit_of_error(x, y)

    def _misfit_of_x(self, x: PortLike) -> str | None:
        if self.vocabulary is None:
            return None
        size = len(self.vocabulary)
        tail = list(x.shape[2:])
        if x.dtype == "int64" and tail == [] and x.ids in (None, size):
            return None
        if x.dtype == "float32" and tail == [size]:  # one-hot
            return None
        found = f"{x.dtype} of shape {list(x.shape)}" + (f" with {x.ids} ids" if x.ids else "")
        return (
            f"the pipeline's `vocabulary` has {size} tokens, the module's x is {found}, expected "
            f"integers of shape ['B', 'T'] with {size} ids, or one-hot rows of {size}; list every "
            "token that the module knows (padding too), or call the meanings of y `classes`"
        )

    def _misfit_of_y(self, y: PortLike) -> str | None:
        tail = list(y.shape[2:])
        if self.classes is not None and tail != [len(self.classes)]:
            return (
                f"the pipeline has {len(self.classes)} `classes`, the module's y has shape "
                f"{list(y.shape)}, expected one logit a class; one score for two classes is an "
                '`alarm` with "score": "y"'
            )
        if self.alarm is not None and tail not in ([], [1]):
            return (
                f"the pipeline's `alarm` wants one score a step, the module's y has shape "
                f"{list(y.shape)}; the error of a reconstruction (`mse`, `mae`, `max`) becomes one "
                "where the model is exported as windowed"
            )
        if self.choose is not None and self.y_means(tail) not in ("tokens", "classes"):
            return (
                f"the pipeline's `choose` has nothing to choose from: the module's y has shape "
                f"{list(y.shape)}, the `vocabulary` {len(self.vocabulary or ())} tokens"
            )
        return None

    def _misfit_of_error(self, x: PortLike, y: PortLike) -> str | None:
        if self.error is None:
            return None
        if not self.feeds_numbers_back(x, y):
            return (
                f"the pipeline's `error` is that of a forecast of the next x, the module's x has "
                f"shape {list(x.shape)} and its y {list(y.shape)}; leave it out"
            )
        if y.shape[-1] != len(self.error.std):
            return (
                f"the pipeline's `error` has {len(self.error.std)} features, the module's y has "
                f"shape {list(y.shape)}"
            )
        return None

    def feeds_numbers_back(self, x: PortLike, y: PortLike) -> bool:
        """Whether y is numbers that can be the next x."""
        tail = list(y.shape[2:])
        is_same = x.dtype == y.dtype == "float32" and tail == list(x.shape[2:])
        return is_same and self.y_means(tail) == "numbers"

    def encode(self, x: Array) -> Array:
        """Raw x (..., I), raw units -> (..., I) float64, standardised (unitless). A copy."""
        if self.x is None:
            return np.array(x)
        mean, std = self.x.arrays
        standardised: Array = (np.asarray(x, np.float64) - mean) / std
        return standardised

    def decode(self, y: Array) -> Array:
        """The model's y (..., O), standardised -> (..., O) float64, raw units."""
        if self.y is None or (self.alarm is not None and self.alarm.is_reconstruction):
            return y
        mean, std = self.y.arrays
        raw: Array = y.astype(np.float64) * std + mean
        return raw

    def one_hot(self, ids: Array) -> Array:
        """(...,) ids -> (..., V) float32, 1 at the token's place."""
        rows = np.zeros((*ids.shape, len(self.vocabulary or ())), np.float32)
        np.put_along_axis(rows, ids[..., None], 1.0, axis=-1)
        return rows
