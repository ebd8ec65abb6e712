"""A request on its way through the engine, and its answer, the same under every protocol."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import msgspec
import numpy as np

from service.errors import ResultNotFiniteError, TimedOutError, TooLongError
from service.model import Model
from service.origin import NOWHERE, Origin
from service.session import (
    Act,
    Ask,
    LastReply,
    Record,
    SessionKey,
    advance,
    begin,
    copy_of,
    digest_of,
    digest_of_key,
)
from service.tracing import Span
from service.wire import RowShape

Array = np.ndarray


class Opening(Enum):
    """What a request expects of its session."""

    ANY = Act.ADVANCE  # goes on with it, or begins it
    START = Act.START  # begins it, and begins it anew where it lives
    LIVE = Act.CONTINUE  # goes on with it; it must be there


class Rows(Protocol):
    """The x of a request as it came: JSON, a binary tensor."""

    def decode(self, shape: RowShape) -> Array:
        """(time, *tail) in the client's units; ClientError if it is anything else."""
        ...


class Request(msgspec.Struct, frozen=True):
    """Advance a session by rows."""

    key: SessionKey
    rows: Rows
    step: int | None = None
    model: str | None = None  # `name` or `name:version`
    want: tuple[str, ...] | None = None  # fields of the reply; None: all
    choose: Mapping[str, Any] | None = None  # None: as the model's pipeline says
    most: int | None = None  # live sessions of its tenant; None: as many as the store takes
    opening: Opening = Opening.ANY  # what it expects of its session
    ends: bool = False  # forget the session in the commit of this request
    is_unnamed: bool = False  # its session id was drawn for it: no store need be asked for it
    idempotency_key: str | None = None  # another name for `step`: the last one again is a retry
    origin: Origin = NOWHERE

    @property
    def session_id(self) -> str:
        return self.key.session_id


class Answer(msgspec.Struct, frozen=True):
    """What a request got; y (T, ...) in raw units, `step` the index of the next step.

    `result` is what its reply shows: y, if that was wanted, and what the pipeline reads in it.
    """

    session_id: str
    model: str
    version: str
    step: int
    created: bool
    y: Array
    result: Mapping[str, object]
    restarted: bool = False  # created where an older session lived, which is no more


def timed_out(timeout_s: float) -> TimedOutError:
    return TimedOutError(
        f"the request took longer than its timeout of {timeout_s:g} s; it was not done, and its "
        "session stands where it stood; send it again, or give it more time"
    )


class Waited:
    """What the engine and its observer know of a job that somebody waits for."""

    arrived_s = 0.0  # these three are the observer's: on its clock, when it came
    was_taken = False  # into a batch, ever
    span: Span | None = None  # None: it is not traced
    timeout_s = math.inf  # these are the engine's: what it may take,
    due_s = math.inf  # and until when, on the loop's clock
    is_committing = False  # its answer is as good as given
    too_late: TimedOutError | None = None  # its time was up while it ran: that is thrown away


class Job(Waited):
    """A request that is waiting or running.

    Nothing of it is seen by others until it is whole: the running state and the y so far live
    here, and go to the store in one commit.
    """

    rows = 1  # of a batch

    def __init__(
        self, request: Request, model: Model, max_steps: int, future: "asyncio.Future[Answer]"
    ) -> None:
        """Decode and check the request for `model`; ClientError if it does not fit."""
        self.request = request
        self.key = request.key
        self.tenant = request.key.tenant
        self.future = future
        self.max_steps = max_steps
        self.bind(model)

    def bind_to(self, model: Model) -> None:
        """`bind`, unless it is bound to it."""
        if model is not self.model:
            self.bind(model)

    def bind(self, model: Model) -> None:
        """Read the request's rows as rows of `model`; ClientError if they are not."""
        rows = self.request.rows.decode(model.row_shape)
        if len(rows) > self.max_steps:
            raise TooLongError(
                f"`x` has {len(rows)} steps, the server takes {self.max_steps} in one request; "
                "send it in several",
                got=len(rows),
                expected=self.max_steps,
            )
        request = self.request
        self.model = model
        self.wish = model.reader.wish(request.want, request.choose)
        self.x = model.encode(rows)
        self.ask = Ask(
            request.key.session_id,
            request.step,
            digest_of(self.x),
            request.model,
            request.opening.value,
            request.ends,
            digest_of_key(request.idempotency_key),
        )
        self.progress: Progress | None = None

    @property
    def runs_apart(self) -> bool:
        return not self.model.runtime.isolated

    @property
    def steps_left(self) -> int:
        return len(self.x) - (self.progress.steps if self.progress else 0)

    def chunks(self, steps: int) -> list[Array]:
        """(steps, ...) for each row: what it runs next."""
        done = self.started.steps
        return [self.x[done : done + steps]]

    def states(self) -> list[bytes]:
        """For each row."""
        return [self.started.state]

    def advance(
        self, ys: Sequence[Array], states: Sequence[bytes], finite: Sequence[bool]
    ) -> tuple[()]:
        """Take what the model gave for `chunks`.

        Raises:
            ResultNotFiniteError: it is NaN or infinity; nothing was taken.
        """
        if not finite[0]:
            raise self._not_finite(ys[0])
        self.started.add(ys[0], states[0])
        return ()

    def _not_finite(self, y: Array) -> ResultNotFiniteError:
        progress = self.started
        bad = ~np.isfinite(y.reshape(len(y), -1)).all(axis=1)
        at = progress.base.step + progress.steps + (int(bad.argmax()) if bad.any() else len(y) - 1)
        return ResultNotFiniteError(
            f"the model's result for session `{self.key.session_id}` is not finite at step {at}; "
            f"the session stays at step {progress.base.step}",
            session_id=self.key.session_id,
            step=progress.base.step,
            at_step=at,
        )

    def start(self, before: Record | None, birth: int, anew: bool) -> None:
        """Run from `before`, moved to this model's version if it was on another, or `anew`."""
        model = self.model
        if before is None or anew:
            base = begin(birth, model.name, model.version, model.initial_state)
        elif before.version != model.version:
            base = copy_of(before, birth, model.version)
        else:
            base = before
        self.progress = Progress(before, base, base.state, is_new=before is None or anew)

    def restart(self) -> None:
        """Forget what was run: the store has moved on."""
        self.progress = None

    @property
    def started(self) -> "Progress":
        """The progress of a job that was started."""
        if self.progress is None:
            raise RuntimeError(f"the job of session `{self.key.session_id}` was not started")
        return self.progress

    def whole_record(self) -> Record:
        """What a job whose every step was run makes of its session."""
        progress = self.started
        return advance(
            progress.base,
            self.ask,
            progress.steps,
            progress.y(),
            progress.state,
            created=progress.is_new,
            restarted=progress.is_new and progress.before is not None,
        )

    def whole_answer(self, record: Record) -> Answer:
        """The answer of a job whose every step was run and committed as `record`."""
        return self._answer(record, self.started.y())

    def _answer(self, record: Record, y: Array) -> Answer:
        y = self.model.decode(y)
        stream = (self.key.tenant, self.key.session_id)
        read = self.model.reader.read(y, self.wish, stream, record.last.step)
        return Answer(
            session_id=self.key.session_id,
            model=record.model,
            version=record.version,
            step=record.step,
            created=record.last.created,
            y=y,
            result={"y": y, **read} if "y" in self.wish.fields else read,
            restarted=record.last.restarted,
        )

    def replay(self, record: Record) -> Answer:
        """The last reply of `record` again."""
        port = self.model.artifact.manifest.ports.y
        last: LastReply = record.last
        y = np.frombuffer(last.y, np.dtype(port.dtype).newbyteorder("<"))
        y = y.reshape(record.step - last.step, *(int(dim) for dim in port.shape[2:]))
        return self._answer(record, y.astype(port.dtype))


@dataclass(slots=True)
class Progress:
    """How far a job came, slice by slice."""

    before: Record | None  # what the store held
    base: Record  # what the job began from
    state: bytes  # after the steps so far
    is_new: bool  # it began, or began anew
    steps: int = 0
    ys: list[Array] = field(default_factory=list)  # one (T, ...) for each slice

    def add(self, y: Array, state: bytes) -> None:
        self.ys.append(y)
        self.steps += len(y)
        self.state = state

    def y(self) -> Array:
        return self.ys[0] if len(self.ys) == 1 else np.concatenate(self.ys)
