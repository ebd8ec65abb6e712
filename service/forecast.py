"""A forecast on its way through the engine: the model goes on by itself from a session's state.

Rules
- The state is taken once, at a step boundary, and is the forecast's own from then on: the session
  may be advanced, dropped or forecast by others meanwhile. Nothing is committed, and the session
  does not live longer by it.
- A line says what stands at a step that has not come yet: the first at the session's step, as its
  last reply said, each other as the model says when it reads the line before.
- With `x` the model first reads its rows, and the lines begin after them.
- Without a session it begins from the model's initial state, and then needs `x`. A session that is
  named and not there is an error, as its state is not the initial one.
- All samples are rows of one batch, one step at a time, beside the steps of others; so a long
  forecast delays nobody by more than a batch.
- It runs at most `MAX_AHEAD` lines ahead of its reader.
- A result that is not finite ends the forecast.
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.batcher import APART_SLICE_STEPS
from service.errors import (
    CapacityError,
    NotFiniteError,
    RequestError,
    ResultNotFiniteError,
    SessionNotFoundError,
    TooLongError,
)
from service.feedback import Chance, Guess, open_feedback
from service.job import Rows, Waited
from service.model import Model
from service.origin import NOWHERE, Origin
from service.session import Ask, Move, Record, SessionKey, decide

Array = np.ndarray

MAX_AHEAD = 256  # lines that wait for their reader; some ten milliseconds of a small model
SHARE = 2  # samples under way are at most half of the queue, as they stay long
_NO_ROWS = b"a forecast"  # the digest of no request: a forecast is never a retry

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class ForecastRequest:
    """Go on from a session, or (no `session_id`) from the model's initial state."""

    tenant: str
    session_id: str | None
    horizon: int  # steps, at least 1
    rows: Rows | None = None  # what is read first
    step: int | None = None  # where the session must stand
    model: str | None = None  # `name` or `name:version`
    samples: int | None = None  # None: one, and its lines hold no list of samples
    seed: int | None = None
    want: tuple[str, ...] | None = None
    choose: Mapping[str, Any] | None = None
    origin: Origin = NOWHERE

    @property
    def key(self) -> SessionKey | None:
        return None if self.session_id is None else SessionKey(self.tenant, self.session_id)


@dataclass(frozen=True, slots=True)
class ForecastLimits:
    """What one forecast may ask for."""

    max_rows: int  # samples, of a batch
    max_read_steps: int  # rows of `x`
    max_steps: int  # horizon x samples


@dataclass(frozen=True, slots=True)
class Line:
    """What is forecast for one step."""

    step: int  # its index in the session
    shown: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ForecastKey:
    """A forecast's own place in the queue: it waits for nobody, and nobody waits for it."""

    tenant: str
    number: int


def check_session(request: ForecastRequest, record: Record | None) -> None:
    """Whether there is what the request wants to go on from.

    Raises:
        RequestError: it names neither a session nor what to read first.
        SessionNotFoundError, SessionGoneError: there is no such session.
        StepConflictError: it stands elsewhere.
        ModelConflictError: it lives on another model.
    """
    if request.session_id is None:
        if request.rows is None:
            raise RequestError("expected `session_id`, or `x` to begin with, or both")
        if request.step:
            raise RequestError(
                f"`step` is {request.step} and there is no `session_id`, expected 0 or none"
            )
        return
    ask = Ask(request.session_id, request.step, _NO_ROWS, request.model)
    if decide(ask, record) is Move.BEGIN:
        raise SessionNotFoundError(
            f"there is no session `{request.session_id}`; it never began, expired, or was dropped. "
            "To begin from the model's initial state leave `session_id` out, and send `x`",
            session_id=request.session_id,
        )


class Forecast(Waited):
    """One forecast that is waiting or running; the batcher takes it for a job."""

    def __init__(
        self,
        request: ForecastRequest,
        record: Record | None,
        model: Model,
        limits: ForecastLimits,
        future: "asyncio.Future[None]",
    ) -> None:
        """Check the request for `model`; a CarouselError if it cannot be done.

        Args:
            record: the session's, None without one; checked by `check_session`.
            future: done when the last line is there, or with what ended the forecast.
        """
        self.request = request
        self.model = model
        self.future = future
        self.key = ForecastKey(request.tenant, next(_numbers))
        self.from_step = record.step if record else 0
        self.news = asyncio.Event()  # a line is there, or the future is done
        future.add_done_callback(lambda _: self.news.set())
        chance = _chance(request, model, limits)
        wish = model.reader.wish(request.want, request.choose)
        self._feedback = open_feedback(model, wish, chance)
        self._chance = chance
        self._states = [record.state if record else model.initial_state]
        self._x = _read_first(request, model, limits)
        self._read = 0  # rows of it
        self._next: Array | None = None  # (M, ...): what each sample reads next
        self._told = 0  # lines so far
        self._lines: list[Line] = []
        if self._x is None:
            self.put([self._first_line(_last_y(request.session_id, record, model))])

    # What the batcher looks at --------------------------------------------------------------------

    @property
    def tenant(self) -> str:
        return self.key.tenant

    @property
    def runs_apart(self) -> bool:
        return not self.model.runtime.isolated

    @property
    def rows(self) -> int:
        return self._chance.rows if self._next is not None else 1

    @property
    def steps_left(self) -> int:
        """One at a time once it leads itself: what comes next is not known before."""
        return 1 if self._next is not None or self._x is None else len(self._x) - self._read

    # What the engine runs -------------------------------------------------------------------------

    def chunks(self, steps: int) -> list[Array]:
        """(steps, ...) for each row."""
        if self._next is not None:
            return [self._next[n : n + 1] for n in range(len(self._next))]
        return [] if self._x is None else [self._x[self._read : self._read + steps]]

    def states(self) -> list[bytes]:
        """For each row."""
        return self._states

    def advance(
        self, ys: Sequence[Array], states: Sequence[bytes], finite: Sequence[bool]
    ) -> list[Line]:
        """Take what the model gave for `chunks`, and say what it means: no line, or one.

        Raises:
            ResultNotFiniteError: it went to NaN or infinity.
        """
        if not all(finite):
            raise self._not_finite(finite.index(False))
        self._states = list(states)
        if self._next is not None:
            return [self._guess(np.concatenate(ys))]
        self._read += len(ys[0])
        return [] if self.steps_left else [self._first_line(ys[0][-1])]

    def put(self, lines: Sequence[Line]) -> None:
        """Let the reader have them."""
        self._lines += lines
        if lines:
            self.news.set()

    @property
    def samples(self) -> int:
        return self._chance.rows

    @property
    def is_whole(self) -> bool:
        """Whether every line is told."""
        return self._told == self.request.horizon

    @property
    def is_ahead(self) -> bool:
        """Whether it must wait for its reader."""
        return len(self._lines) >= MAX_AHEAD

    # What the reader gets -------------------------------------------------------------------------

    def take(self) -> list[Line]:
        """The lines since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def _first_line(self, y: Array) -> Line:
        """y (...) is that of the step before; from here on each sample goes its own way."""
        self._states = self._states * self._chance.rows
        return self._guess(np.repeat(y[np.newaxis], self._chance.rows, axis=0))

    def _guess(self, y: Array) -> Line:
        step = self.next_step
        try:
            guess: Guess = self._feedback.guess(y, step - 1)
        except NotFiniteError:
            raise self._not_finite(0) from None
        self._next = guess.x
        self._told += 1
        return Line(step, guess.shown)

    @property
    def next_step(self) -> int:
        """The index of the next line."""
        return self.from_step + self._read + self._told

    def _not_finite(self, row: int) -> ResultNotFiniteError:
        which = "" if self._chance.samples is None else f", in sample {row}"
        return ResultNotFiniteError(
            f"the forecast is not finite at step {self.next_step}{which}; it ends there, and "
            "changed nothing",
            at_step=self.next_step,
        )


class UnderWay:
    """The forecasts of one engine that have not ended, and how many samples more it takes."""

    def __init__(
        self,
        max_batch: int,
        max_queue: int,
        max_per_tenant: int | None,
        retry_after_s: Callable[[int], int],
    ) -> None:
        """As the batcher's; as many samples as fill a batch are always taken."""
        per_tenant = max_queue if max_per_tenant is None else max_per_tenant
        self._most = max(max_batch, max_queue // SHARE)
        self._most_per_tenant = max(max_batch, per_tenant // SHARE)
        self._retry_after_s = retry_after_s
        self._forecasts: list[Forecast] = []  # some of them may have ended

    def add(self, forecast: Forecast) -> None:
        """It counts until its future is done."""
        self._forecasts.append(forecast)

    def check(self, new: Forecast) -> None:
        """Whether there is room for `new`; CapacityError: not now."""
        self._forecasts = [one for one in self._forecasts if not one.future.done()]
        of_tenant = [one for one in self._forecasts if one.tenant == new.tenant]
        self._check(new, self._forecasts, self._most, "forecasts")
        self._check(new, of_tenant, self._most_per_tenant, "tenant_forecasts")

    def _check(self, new: Forecast, others: Sequence[Forecast], most: int, limit: str) -> None:
        under_way = sum(one.samples for one in others)
        if under_way + new.samples > most:
            wait_s = self._retry_after_s(under_way)
            whose = "your forecasts" if limit == "tenant_forecasts" else "forecasts"
            raise CapacityError(
                f"{whose} of {under_way} samples are under way and {new.samples} more are asked "
                f"for, the server takes {most}; retry in {wait_s} s",
                limit=limit,
                retry_after_s=wait_s,
            )


def _chance(request: ForecastRequest, model: Model, limits: ForecastLimits) -> Chance:
    samples = request.samples or 1
    most = limits.max_rows if model.runtime.isolated else APART_SLICE_STEPS
    if samples > most:
        raise TooLongError(
            f"`samples` is {samples}, {model.reference} runs {most} rows together here; ask for "
            "fewer, several times with another `seed`",
            got=samples,
            expected=most,
        )
    longest = limits.max_steps // samples
    if request.horizon > longest:
        together = "" if samples == 1 else f" of all {samples} samples together"
        raise TooLongError(
            f"`horizon` is {request.horizon}, the server takes {limits.max_steps} steps{together}; "
            f"ask for at most {longest}",
            got=request.horizon,
            expected=longest,
        )
    stream = (request.tenant, request.session_id or "")
    return Chance(stream, request.samples, request.seed)


def _read_first(request: ForecastRequest, model: Model, limits: ForecastLimits) -> Array | None:
    if request.rows is None:
        return None
    rows = request.rows.decode(model.row_shape)
    if len(rows) > limits.max_read_steps:
        raise TooLongError(
            f"`x` has {len(rows)} steps, the server takes {limits.max_read_steps} in one request; "
            "advance a session by the first ones, and forecast from it",
            got=len(rows),
            expected=limits.max_read_steps,
        )
    return model.encode(rows)


def _last_y(session_id: str | None, record: Record | None, model: Model) -> Array:
    """(...) what the session's last step gave, in the model's units."""
    port = model.artifact.manifest.ports.y
    dtype = np.dtype(port.dtype).newbyteorder("<")
    tail = [int(dim) for dim in port.shape[2:]]
    size = dtype.itemsize * int(np.prod(tail))
    last = record.last.y if record else b""
    if not last or len(last) % size:
        raise RequestError(
            f"session `{session_id}` has no last reply of this model to go on from; send `x`"
        )
    return np.frombuffer(last[-size:], dtype).reshape(tail).astype(port.dtype)
