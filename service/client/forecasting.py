"""A forecast, line by line, that goes on after a cut; no I/O.

A forecast moves nothing, and the same one is the same again: after a cut it is asked for anew, at
the same step of the same version, and the lines that were read already are passed over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from service.client.errors import CallError, TryLater, Unreachable, refusal
from service.client.patience import Backoff, Patience
from service.client.rows import read_rows
from service.client.talk import JSON, Call, Response, refusal_of


@dataclass(frozen=True, slots=True, eq=False)
class Ahead:
    """What stands at a step that has not come yet."""

    step: int
    y: Any  # (...) in raw units, or (samples, ...); None: it was not wanted
    more: Mapping[str, Any]  # what the model's pipeline reads in it: text, labels, alarm


class Forecast:
    """One forecast under way."""

    def __init__(
        self,
        session_id: str | None,
        model: str | None,
        horizon: int,
        x: Any = None,
        samples: int | None = None,
        seed: int | None = None,
        want: Sequence[str] | None = None,
        choose: Mapping[str, Any] | None = None,
        *,
        patience: Patience,
    ) -> None:
        self._fields: dict[str, Any] = {"horizon": horizon}
        given: dict[str, Any] = {"session_id": session_id, "model": model, "choose": choose}
        given |= {"samples": samples, "seed": seed}
        given["want"] = None if want is None else list(want)
        given["x"] = None if x is None else msgspec.Raw(read_rows(x).json)
        self._fields |= {name: value for name, value in given.items() if value is not None}
        self._patience = patience
        self._backoff = Backoff(patience)
        self._version: str | None = None
        self._next: int | None = None  # the step of the next line to give out
        self._interrupted: TryLater | None = None
        self.is_done = False

    @property
    def call(self) -> Call:
        """To be sent now; its reply is read line by line."""
        body = msgspec.json.encode(self._fields)
        return Call("POST", "/forecast", body, JSON, self._backoff.try_for_s)

    def read(self, line: str) -> Ahead | None:
        """One line; None: it is not for the caller.

        Raises:
            CallError: the forecast ends by an error.
        """
        try:
            body = msgspec.json.decode(line)
        except msgspec.DecodeError:
            raise Unreachable(f"the answer is no JSON: {line[:200]!r}; is this Carousel?") from None
        if "error" in body:
            error = refusal(body)
            if not isinstance(error, TryLater):
                raise error
            self._interrupted = error
            return None
        if "done" in body:
            self.is_done = True
        elif "version" in body:
            self._begin(body)
        elif self._next is None or body["step"] >= self._next:
            self._backoff = Backoff(self._patience)
            self._next = body["step"] + 1
            more = {name: value for name, value in body.items() if name not in ("step", "y")}
            y = np.array(body["y"]) if "y" in body else None
            return Ahead(body["step"], y, more)
        return None

    def _begin(self, start: Mapping[str, Any]) -> None:
        if self._version not in (None, start["version"]):
            raise CallError(
                f"the forecast by version {self._version} was cut, and the session has moved to "
                f"version {start['version']}; ask for it again"
            )
        self._version = start["version"]
        self._fields["step"] = start["step"]

    def refused(self, response: Response) -> float:
        """How long to wait before the next try of one that was refused.

        Raises:
            Refused: it is refused for good, or the time is up.
        """
        error = refusal_of(response)
        if not isinstance(error, TryLater):
            raise error
        return self._pause(error, error.retry_after_s)

    def ended(self) -> float:
        """The same after a reply that was read to its end."""
        if self.is_done:
            return 0.0
        if (error := self._interrupted) is None:
            return self.cut(None)
        self._interrupted = None
        return self._pause(error, error.retry_after_s)

    def cut(self, cause: Exception | None) -> float:
        """The same of one whose reply broke off."""
        error = Unreachable(f"the forecast broke off: {cause or 'its end is missing'}")
        error.__cause__ = cause
        return self._pause(error, None)

    def _pause(self, error: CallError, retry_after_s: float | None) -> float:
        pause_s = self._backoff.pause_s(retry_after_s)
        if pause_s is None:
            raise error from error.__cause__
        return pause_s
