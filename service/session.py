"""The rules of a session: what a request does to it, given what the store holds.

Rules
- A request may carry `step`, the index of its first row. Equal to the session's step: it runs.
- The last request again (same index, same bytes): the same reply, and the state does not move.
- Anything else: 409 with the step that the server expects.
- Without `step`: it runs, and the reply says where the session now stands.
- No such session: with `step` absent or 0 it begins; with `step` > 0 it is gone (410). A session
  is never silently restarted.
- A request that names another model than the session's is refused (409).

How it works: `situation` reads which of six situations a request is in, `TRANSITIONS` says what
each leads to, and `decide` puts the two together. No clock, no I/O, no asyncio: the engine loads
the record, runs the model, and commits what `advance` returns.
"""

import hashlib
from dataclasses import dataclass, replace
from enum import Enum, auto

import numpy as np

from service.errors import ClientError, ModelConflictError, SessionGoneError, StepConflictError

Array = np.ndarray

_DIGEST_BYTES = 16  # 128 bits: two requests of one session never collide by chance


@dataclass(frozen=True, slots=True)
class SessionKey:
    """Whose session: a tenant sees its own only."""

    tenant: str
    session_id: str


@dataclass(frozen=True, slots=True)
class LastReply:
    """Enough to give the last reply again, byte for byte, under any protocol and encoding."""

    step: int  # the index of the request's first row
    digest: bytes  # of the request's rows, `digest_of`
    y: bytes  # the model's y (T, ...), little-endian, in the model's units
    created: bool


@dataclass(frozen=True, slots=True)
class Record:
    """All that the server knows of one session."""

    birth: int  # random: tells it from an earlier session of the same key
    model: str
    version: str
    step: int  # the index of the next step
    state: bytes  # safetensors, `StateLayout`
    last: LastReply


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request says that the rules look at."""

    session_id: str
    step: int | None
    digest: bytes
    model: str | None = None  # `name` or `name:version`


class Situation(Enum):
    """Where a request finds its session."""

    NEW = auto()  # no record; `step` absent or 0
    GONE = auto()  # no record; `step` > 0
    ELSEWHERE = auto()  # a record, of another model than the request names
    NEXT = auto()  # a record; `step` absent, or where the session stands
    AGAIN = auto()  # a record; the last request again: same step, same bytes
    MISPLACED = auto()  # a record; any other step


class Move(Enum):
    """What the engine does."""

    BEGIN = auto()  # run from the zero state, then commit a new record
    ADVANCE = auto()  # run from the record's state, then commit
    REPLAY = auto()  # give the last reply again


TRANSITIONS: dict[Situation, Move | type[ClientError]] = {
    Situation.NEW: Move.BEGIN,
    Situation.GONE: SessionGoneError,
    Situation.ELSEWHERE: ModelConflictError,
    Situation.NEXT: Move.ADVANCE,
    Situation.AGAIN: Move.REPLAY,
    Situation.MISPLACED: StepConflictError,
}


def situation(ask: Ask, record: Record | None) -> Situation:
    if record is None:
        return Situation.GONE if ask.step else Situation.NEW
    if ask.model not in (None, record.model, f"{record.model}:{record.version}"):
        return Situation.ELSEWHERE
    if ask.step is None or ask.step == record.step:
        return Situation.NEXT
    if (ask.step, ask.digest) == (record.last.step, record.last.digest):
        return Situation.AGAIN
    return Situation.MISPLACED


def decide(ask: Ask, record: Record | None) -> Move:
    """What to do with a request.

    Raises:
        SessionGoneError: resend from step 0, or restore the session.
        ModelConflictError: send what the session's model wants, or use another session id.
        StepConflictError: resend from the step it says, or drop `step`.
    """
    outcome = TRANSITIONS[situation(ask, record)]
    if isinstance(outcome, Move):
        return outcome
    raise _refusal(outcome, ask, record)


def _refusal(error: type[ClientError], ask: Ask, record: Record | None) -> ClientError:
    if record is None:
        return error(
            f"session `{ask.session_id}` is gone or never began, request says step {ask.step}; "
            "begin again with step 0",
            session_id=ask.session_id,
            expected=0,
            got=ask.step,
        )
    if error is ModelConflictError:
        lives_on = f"{record.model}:{record.version}"
        return error(
            f"session `{ask.session_id}` lives on {lives_on}, request says {ask.model}; "
            "drop `model` or use another session_id",
            session_id=ask.session_id,
            expected=lives_on,
            got=ask.model,
        )
    return error(
        f"session `{ask.session_id}` stands at step {record.step}, request says {ask.step}; "
        f"resend from step {record.step} or drop `step`",
        session_id=ask.session_id,
        expected=record.step,
        got=ask.step,
    )


def begin(birth: int, model: str, version: str, state: bytes) -> Record:
    """The record of a session that has not taken a step; `advance` makes the first to commit."""
    nothing = LastReply(step=0, digest=b"", y=b"", created=False)
    return Record(birth, model, version, 0, state, nothing)


def advance(record: Record, ask: Ask, steps: int, y: Array, state: bytes, created: bool) -> Record:
    """The record after `steps` more steps; y (T, ...) in the model's units."""
    last = LastReply(record.step, ask.digest, _little_endian(y), created)
    return replace(record, step=record.step + steps, state=state, last=last)


def digest_of(x: Array) -> bytes:
    """What makes two requests the same: their rows (T, ...) in the model's units."""
    return hashlib.blake2b(x.tobytes(), digest_size=_DIGEST_BYTES).digest()


def _little_endian(array: Array) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
