"""What a reply says of y beside its numbers: the chosen tokens, the labels, the alarms.

Pure: the same y at the same step of the same session, asked for in the same way, is read the same.
That is what lets the last reply be given again from the y that the store kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter, ValidationError

from service.choice import CHOOSE_FORM, Argmax, Choose, Sample, choose, softmax
from service.errors import RequestError
from service.pipeline import Meaning, Pipeline

Array = np.ndarray

_METHODS: TypeAdapter[Argmax | Sample] = TypeAdapter(Choose)
_OF_LOGITS = {"y", "probabilities"}  # fields for which nothing is chosen


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of its reply."""

    fields: tuple[str, ...]  # of those that hold the result
    choose: Argmax | Sample


class Reader:
    """Reads y as one model's pipeline says."""

    def __init__(self, pipeline: Pipeline, tail: Sequence[int | str]) -> None:
        """Args:
        tail: y is (B, T, *tail).
        """
        self._pipeline = pipeline
        self._means = pipeline.y_means(tail)
        self.fields = ("y", *_fields(pipeline, self._means))
        self._default = Wish(self.fields, pipeline.choose or Argmax())

    def wish(self, want: Sequence[str] | None, choose: Mapping[str, object] | None) -> Wish:
        """What a request's fields `want` and `choose` ask for; None: all, as the pipeline says.

        Raises:
            RequestError: this model's replies have no such field, or there is nothing to choose.
        """
        if want is None and choose is None:
            return self._default
        fields = self.fields if want is None else self._wanted(want)
        how = self._default.choose if choose is None else self._chosen(choose)
        return Wish(fields, how)

    def _wanted(self, want: Sequence[str]) -> tuple[str, ...]:
        unknown = [field for field in want if field not in self.fields]
        if unknown or not want:
            got = f"`{unknown[0]}`" if unknown else "an empty list"
            raise RequestError(f"`want` is {got}, expected some of {', '.join(self.fields)}")
        return tuple(field for field in self.fields if field in want)

    def _chosen(self, choose: Mapping[str, object]) -> Argmax | Sample:
        if self._means not in ("tokens", "classes"):
            raise RequestError(
                "`choose` has nothing to choose from: this model's y is no logits of tokens or "
                "classes; leave it out"
            )
        try:
            return _METHODS.validate_python(choose)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(["choose", *map(str, first["loc"][1:])])
            raise RequestError(f"`{where}`: {first['msg']}; expected {CHOOSE_FORM}") from error

    def read(self, y: Array, wish: Wish, stream: Sequence[str], step: int) -> dict[str, object]:
        """The wished fields besides `y`.

        Args:
            y: (T, ...), raw units, of steps `step`, `step` + 1, ...
            stream: whose they are, such as tenant and session id.
        """
        if self._means == "numbers" or wish.fields == ("y",):
            return {}
        if self._means == "score":
            return {"alarm": self._alarms(y)}
        found: dict[str, object] = {}
        if "probabilities" in wish.fields:
            found["probabilities"] = softmax(y)
        if not _OF_LOGITS.issuperset(wish.fields):
            found |= self._name(choose(y, wish.choose, stream, step))
        return {field: found[field] for field in wish.fields if field in found}

    def _name(self, chosen: Array) -> dict[str, object]:
        vocabulary, classes = self._pipeline.tokens, self._pipeline.classes
        if classes is not None:
            return {"labels": [classes[number] for number in chosen.tolist()]}
        if vocabulary is None:
            return {}
        tokens = vocabulary.tokens_of(chosen)
        return {"text": "".join(tokens)} if vocabulary.is_characters else {"tokens": tokens}

    def _alarms(self, y: Array) -> list[bool]:
        """Compared at y's precision, so that a score that reads as the threshold is none."""
        if self._pipeline.alarm is None:
            return []
        with np.errstate(over="ignore"):  # a threshold beyond float32 is never exceeded
            threshold = np.float64(self._pipeline.alarm.threshold).astype(y.dtype)
        return [bool(flag) for flag in y.reshape(len(y)) > threshold]


def _fields(pipeline: Pipeline, means: Meaning) -> tuple[str, ...]:
    match means:
        case "tokens":
            is_text = pipeline.tokens is not None and pipeline.tokens.is_characters
            return ("text",) if is_text else ("tokens",)
        case "classes":
            return ("labels", "probabilities")
        case "score":
            return ("alarm",)
        case "numbers":
            return ()
