"""The rules of a session: what a request or a change does to it, given what the store holds.

Rules
- A request may carry `step`, the index of its first row. Equal to the session's step: it runs.
- The last request again (same index, same bytes): the same reply, and the state does not move.
- Anything else: 409 with the step that the server expects.
- Without `step`: it runs, and the reply says where the session now stands. If it carries an
  idempotency key, and it is the last request's with the same bytes, it is that request again, as
  above; with other bytes the key is refused (422). Where there is a `step`, it alone decides.
- No such session: with `step` absent or 0 it begins; with `step` > 0 it is gone (410). A session
  is never silently restarted.
- A request may ask for a start: the session begins, and where it lives it begins anew, and the
  reply says so. The last request again is the same reply, as ever. Its `step` can only be 0.
- A request may ask for a live session: where there is none it is gone (410), whatever the step.
- A request may end its session: it runs, and nothing of the session is left, not even its reply.
  So it is never the last request again; sent again it finds no session.
- A request that names another model than the session's is refused (409). A start may name another
  version of the same model, and begins there.
- A copy (a fork, a snapshot) is the whole record, last reply included, and has a life of its own:
  a retry of the last request, sent to the copy, gets that reply. The session is not touched.
- A copy begins where there is no session (409), unless it is told to replace the one there; never
  over a session of another model.
- A promoted session runs its next request on the new version, from the state it has. Until then
  it stands where it stood, and its last reply is given again as the old version gave it. A
  request that names the old version by its number keeps the session there.
- A record that was copied, replaced or moved to another version has a new birth, so that nothing
  computed from the old record is ever committed over it.

How it works: `situation` reads which of seven situations an ask is in, `TRANSITIONS` says what each
leads to for each act, and `decide` puts the two together. No clock, no I/O, no asyncio: the engine
loads the record, runs the model, and commits what `advance` or `copy_of` makes of it.
"""

import hashlib
from enum import Enum, auto
from typing import NamedTuple

import msgspec
import numpy as np

from service.errors import (
    ClientError,
    IdempotencyConflictError,
    ModelConflictError,
    RequestError,
    SessionExistsError,
    SessionGoneError,
    SessionNotFoundError,
    StepConflictError,
)

Array = np.ndarray

CONTROL = "~carousel"  # a tenant that no API key has: records that servers keep for themselves
DIGEST_BYTES = 16  # 128 bits: two requests of one session never collide by chance


class SessionKey(NamedTuple):
    """Whose session: a tenant sees its own only.

    A tuple, as it is hashed some ten times in a request: 0.07 us each, a dataclass's 0.35.
    """

    tenant: str
    session_id: str


# What a request makes one of each is a frozen msgspec.Struct: 0.1 us, a frozen dataclass's 0.7.
# They hold no cycles, so the collector need not look at them.


class LastReply(msgspec.Struct, frozen=True, gc=False):
    """Enough to give the last reply again, byte for byte, under any protocol and encoding."""

    step: int  # the index of the request's first row
    digest: bytes  # of the request's rows, `digest_of`
    y: bytes  # the model's y (T, ...), little-endian, in the model's units
    created: bool
    restarted: bool = False  # created where an older session lived
    key_digest: bytes = b""  # of the request's idempotency key, `digest_of_key`; empty: it had none


class Record(msgspec.Struct, frozen=True, gc=False):
    """All that the server knows of one session."""

    birth: int  # random: tells it from an earlier session of the same key
    model: str
    version: str
    step: int  # the index of the next step
    state: bytes  # safetensors, `StateLayout`
    last: LastReply


class Act(Enum):
    """What is asked of a session."""

    ADVANCE = auto()  # a request: run its rows
    START = auto()  # a request that begins its session, anew where it lives
    CONTINUE = auto()  # a request that wants its session to be there
    COPY = auto()  # read the whole of it: for a fork, or a snapshot
    CREATE = auto()  # put a copy where no session may be
    REPLACE = auto()  # put a copy there, over the session if there is one
    DROP = auto()  # forget it


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a request or a change says that the rules look at."""

    session_id: str
    step: int | None = None
    digest: bytes = b""  # of a request's rows; no record has this one
    model: str | None = None  # `name` or `name:version`
    act: Act = Act.ADVANCE
    ends: bool = False  # forget the session once it is done
    key_digest: bytes = b""  # of its idempotency key; empty: it has none


class Situation(Enum):
    """Where an ask finds its session."""

    NEW = auto()  # no record; `step` absent or 0
    GONE = auto()  # no record; `step` > 0
    ELSEWHERE = auto()  # a record, of another model than the ask names
    NEXT = auto()  # a record; `step` absent, or where the session stands (of a start: 0)
    AGAIN = auto()  # a record; the last request again: same step or key, same bytes
    MISPLACED = auto()  # a record; any other step
    REUSED = auto()  # a record; the last request's key with other bytes


class Move(Enum):
    """What the engine does."""

    BEGIN = auto()  # run from the initial state, then commit a new record, over one there may be
    ADVANCE = auto()  # run from the record's state, then commit
    REPLAY = auto()  # give the last reply again
    READ = auto()  # give the record out
    PUT = auto()  # commit the copy
    FORGET = auto()  # commit that there is none


TRANSITIONS: dict[Act, dict[Situation, Move | type[ClientError]]] = {
    Act.ADVANCE: {
        Situation.NEW: Move.BEGIN,
        Situation.GONE: SessionGoneError,
        Situation.ELSEWHERE: ModelConflictError,
        Situation.NEXT: Move.ADVANCE,
        Situation.AGAIN: Move.REPLAY,
        Situation.MISPLACED: StepConflictError,
        Situation.REUSED: IdempotencyConflictError,
    },
    Act.START: {
        Situation.NEW: Move.BEGIN,
        Situation.GONE: RequestError,
        Situation.ELSEWHERE: ModelConflictError,
        Situation.NEXT: Move.BEGIN,
        Situation.AGAIN: Move.REPLAY,
        Situation.MISPLACED: RequestError,
        Situation.REUSED: IdempotencyConflictError,
    },
    Act.CONTINUE: {
        Situation.NEW: SessionGoneError,
        Situation.GONE: SessionGoneError,
        Situation.ELSEWHERE: ModelConflictError,
        Situation.NEXT: Move.ADVANCE,
        Situation.AGAIN: Move.REPLAY,
        Situation.MISPLACED: StepConflictError,
        Situation.REUSED: IdempotencyConflictError,
    },
    Act.COPY: {
        Situation.NEW: SessionNotFoundError,
        Situation.GONE: SessionNotFoundError,
        Situation.ELSEWHERE: ModelConflictError,
        Situation.NEXT: Move.READ,
        Situation.AGAIN: StepConflictError,
        Situation.MISPLACED: StepConflictError,
        Situation.REUSED: IdempotencyConflictError,
    },
    Act.CREATE: {
        Situation.NEW: Move.PUT,
        Situation.GONE: Move.PUT,
        Situation.ELSEWHERE: SessionExistsError,
        Situation.NEXT: SessionExistsError,
        Situation.AGAIN: SessionExistsError,
        Situation.MISPLACED: SessionExistsError,
        Situation.REUSED: SessionExistsError,
    },
    Act.REPLACE: {
        Situation.NEW: Move.PUT,
        Situation.GONE: Move.PUT,
        Situation.ELSEWHERE: ModelConflictError,
        Situation.NEXT: Move.PUT,
        Situation.AGAIN: StepConflictError,
        Situation.MISPLACED: StepConflictError,
        Situation.REUSED: IdempotencyConflictError,
    },
    Act.DROP: {
        Situation.NEW: SessionNotFoundError,
        Situation.GONE: SessionNotFoundError,
        Situation.ELSEWHERE: ModelConflictError,
        Situation.NEXT: Move.FORGET,
        Situation.AGAIN: StepConflictError,
        Situation.MISPLACED: StepConflictError,
        Situation.REUSED: IdempotencyConflictError,
    },
}


def situation(ask: Ask, record: Record | None, goal: str | None = None) -> Situation:
    """Where `ask` finds its session; `goal` is the version that its next request moves it to."""
    if record is None:
        return Situation.GONE if ask.step else Situation.NEW
    if not _is_home(ask, record, goal):
        return Situation.ELSEWHERE
    if names_last(ask, record):
        if _repeats_last(ask, record):
            return Situation.AGAIN
        if ask.step is None:
            return Situation.REUSED
    wanted = 0 if ask.act is Act.START else record.step
    return Situation.NEXT if ask.step in (None, wanted) else Situation.MISPLACED


def names_last(ask: Ask, record: Record) -> bool:
    """Whether it has the last request's step or key, so that it may be that request again."""
    if ask.step is None:
        return bool(ask.key_digest) and ask.key_digest == record.last.key_digest
    return ask.step == record.last.step < record.step


def _repeats_last(ask: Ask, record: Record) -> bool:
    """Whether an ask that `names_last` is that request: its bytes, and that it ends nothing."""
    begins_elsewhere = ask.act is Act.START and ask.model not in _names(record)
    return ask.digest == record.last.digest and not ask.ends and not begins_elsewhere


def _is_home(ask: Ask, record: Record, goal: str | None) -> bool:
    """Whether the session's model is what the ask names, if it names one."""
    if ask.model is None or ask.model == record.model:
        return True
    if ask.act is Act.START:  # whichever version
        return ask.model.partition(":")[0] == record.model
    return ask.model in _names(record) or ask.model == reference(record.model, goal)


def _names(record: Record) -> tuple[str | None, ...]:
    return None, record.model, reference(record.model, record.version)


def decide(ask: Ask, record: Record | None, goal: str | None = None) -> Move:
    """What to do with a request or a change.

    Raises:
        SessionGoneError: resend from step 0, or restore the session.
        ModelConflictError: send what the session's model wants, or use another session id.
        StepConflictError: resend from the step it says, or drop `step`.
        IdempotencyConflictError: use another key, or send what was sent under it.
        RequestError: a start at another step than 0.
        SessionNotFoundError: there is none to copy or drop.
        SessionExistsError: use another session id, or replace the session.
    """
    return judge(situation(ask, record, goal), ask, record)


def judge(found: Situation, ask: Ask, record: Record | None) -> Move:
    """`decide`, where the situation is known."""
    outcome = TRANSITIONS[ask.act][found]
    if isinstance(outcome, Move):
        return outcome
    raise _refusal(outcome, ask, record)


def reference(model: str, version: str | None) -> str:
    return f"{model}:{version}"


def _refusal(error: type[ClientError], ask: Ask, record: Record | None) -> ClientError:
    if error is SessionNotFoundError:
        return no_session(ask.session_id)
    if error is RequestError:
        return error(
            f"`step` is {ask.step} in a request that begins session `{ask.session_id}`, expected "
            "0 or none",
            session_id=ask.session_id,
            expected=0,
            got=ask.step,
        )
    if record is None:
        says = "" if ask.step is None else f", request says step {ask.step}"
        how = "begin again with step 0"
        if ask.act is Act.CONTINUE:
            how = "the first request of a sequence must specify START"
        return error(
            f"session `{ask.session_id}` is gone or never began{says}; {how}",
            session_id=ask.session_id,
            expected=0,
            **({} if ask.step is None else {"got": ask.step}),
        )
    lives_on = reference(record.model, record.version)
    if error is SessionExistsError:
        return error(
            f"session `{ask.session_id}` is there already, on {lives_on} at step {record.step}; "
            "use another session_id, or drop it first",
            session_id=ask.session_id,
            model=record.model,
            version=record.version,
            step=record.step,
        )
    if error is ModelConflictError:
        return error(
            f"session `{ask.session_id}` lives on {lives_on}, request says {ask.model}; "
            "drop `model` or use another session_id",
            session_id=ask.session_id,
            expected=lives_on,
            got=ask.model,
        )
    if error is IdempotencyConflictError:
        return error(
            f"the last request of session `{ask.session_id}` had this idempotency key and was "
            f"another one; the session stands at step {record.step}; use a new key for each "
            "request, and the same one only to send that request again",
            session_id=ask.session_id,
            step=record.step,
        )
    return error(
        f"session `{ask.session_id}` stands at step {record.step}, request says {ask.step}; "
        f"resend from step {record.step} or drop `step`",
        session_id=ask.session_id,
        expected=record.step,
        got=ask.step,
    )


def no_session(session_id: str) -> SessionNotFoundError:
    return SessionNotFoundError(
        f"there is no session `{session_id}`; it never began, expired, or was dropped",
        session_id=session_id,
    )


def begin(birth: int, model: str, version: str, state: bytes) -> Record:
    """The record of a session that has not taken a step; `advance` makes the first to commit."""
    nothing = LastReply(step=0, digest=b"", y=b"", created=False)
    return Record(birth, model, version, 0, state, nothing)


def advance(
    record: Record,
    ask: Ask,
    steps: int,
    y: Array,
    state: bytes,
    created: bool,
    restarted: bool = False,
) -> Record:
    """The record after `steps` more steps; y (T, ...) in the model's units."""
    y_bytes = _little_endian(y)
    last = LastReply(record.step, ask.digest, y_bytes, created, restarted, ask.key_digest)
    return Record(record.birth, record.model, record.version, record.step + steps, state, last)


def copy_of(record: Record, birth: int, version: str | None = None) -> Record:
    """The same session under another birth, and on `version` if it moves there."""
    version = version or record.version
    return Record(birth, record.model, version, record.step, record.state, record.last)


def digest_of(x: Array) -> bytes:
    """What makes two requests the same: their rows (T, ...) in the model's units."""
    return hashlib.blake2b(x.tobytes(), digest_size=DIGEST_BYTES).digest()


def digests_of(x: Array) -> Array:
    """`digest_of` of each of N requests' rows (N, T, ...): (N,) of 16 bytes each."""
    raw, size = x.tobytes(), x[0].nbytes
    ends = range(size, len(raw) + 1, size)
    made = [
        hashlib.blake2b(raw[end - size : end], digest_size=DIGEST_BYTES).digest() for end in ends
    ]
    return np.frombuffer(b"".join(made), f"V{DIGEST_BYTES}")


def digest_of_key(key: str | None) -> bytes:
    """What is kept of an idempotency key, whatever its length; empty: there is none."""
    return b"" if key is None else hashlib.blake2b(key.encode(), digest_size=DIGEST_BYTES).digest()


def _little_endian(array: Array) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
