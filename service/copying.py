"""Copies of sessions: forks, snapshots and what is restored from them.

Rules
- A copy is of one record as the store held it: a session at a step boundary, with all that its
  requests here had waiting when it was asked for. The session itself is not touched.
- A copy is committed where its session id is free, or over the record that it was told to replace,
  by the same compare-and-set as every step.
- What fails may have been done: a look-up of the copy says whether it was.
- A fork with an idempotency key, and no id of the client's, gets an id that follows from tenant,
  session and key. So the same request again, whenever it is sent, finds the copy that was made,
  for as long as that one lives.
"""

import hashlib
import uuid
from datetime import datetime

from service.engine import Engine
from service.errors import IdempotencyConflictError, SessionExistsError, SessionNotFoundError
from service.session import Act, Ask, Record, SessionKey, copy_of, decide
from service.snapshot import Keyring, read_snapshot, record_of, write_snapshot


async def fork(
    engine: Engine,
    source: SessionKey,
    target_id: str | None,
    step: int | None,
    most: int | None = None,
    idempotency_key: str | None = None,
) -> tuple[SessionKey, Record]:
    """Copy a session to `target_id`, or to an id made here; the copy's key and record.

    Args:
        most: live sessions of the tenant; None: as many as the store takes.
        idempotency_key: without `target_id`, of a request that may be sent again: then the copy
            that it made is found, as it stands by then.
    Raises:
        SessionNotFoundError: there is no source.
        StepConflictError: it does not stand at `step`.
        SessionExistsError: there is a session `target_id`.
        IdempotencyConflictError: the key made a copy that does not stand at `step`.
        CapacityError: there is no room for another session.
    """
    is_repeatable = target_id is None and idempotency_key is not None
    if target_id is None:
        target_id = _id_for(source, idempotency_key) if idempotency_key else uuid.uuid4().hex
    target = SessionKey(source.tenant, target_id)
    while True:
        if is_repeatable and (made := await _made_before(engine, target, step)) is not None:
            return target, made
        copy = copy_of(await _read(engine, source, step), engine.entropy())
        try:
            await _put(engine, target, copy, Ask(target_id, act=Act.CREATE), most)
        except SessionExistsError:
            if not is_repeatable:
                raise
        else:
            return target, copy


async def take_snapshot(engine: Engine, key: SessionKey, keyring: Keyring, now: datetime) -> bytes:
    """A session as a signed file; SessionNotFoundError, NoSnapshotKeyError."""
    return write_snapshot(key, await _read(engine, key, None), keyring, now)


async def restore(
    engine: Engine,
    key: SessionKey,
    raw: bytes,
    keyring: Keyring,
    replace: bool,
    most: int | None = None,
) -> tuple[Record | None, Record]:
    """Begin session `key` as the snapshot says, or replace it; the record before and after.

    Raises:
        SnapshotError, SignatureError, OtherTenantError, NoSnapshotKeyError: see `read_snapshot`.
        UnknownModelError: the snapshot is of a model or version that is not served here.
        IncompatibleError: its states are not that model's.
        SessionExistsError: there is a session, and it is not to be replaced.
        ModelConflictError: the session to be replaced is of another model.
        CapacityError: there is no room for another session.
    """
    snapshot = read_snapshot(raw, key.tenant, keyring)
    model = await engine.load(f"{snapshot.model}:{snapshot.version}")
    record = record_of(snapshot, model.artifact.layout, engine.entropy())
    act = Act.REPLACE if replace else Act.CREATE
    ask = Ask(key.session_id, model=snapshot.model, act=act)
    return await _put(engine, key, record, ask, most), record


def _id_for(source: SessionKey, idempotency_key: str) -> str:
    """The same for the same three, and for no others; as long as a UUID."""
    parts = (source.tenant, source.session_id, idempotency_key)
    joined = b"".join(f"{len(part)}:{part}".encode() for part in parts)
    return hashlib.blake2b(joined, digest_size=16, person=b"carousel fork").hexdigest()


async def _made_before(engine: Engine, target: SessionKey, step: int | None) -> Record | None:
    """The copy that the same request made, if it did."""
    try:
        made = await engine.look_up(target)
    except SessionNotFoundError:
        return None
    if step not in (None, made.step):
        raise IdempotencyConflictError(
            f"this idempotency key made session `{target.session_id}`, which stands at step "
            f"{made.step}, request says {step}; go on with that one, or use a new key",
            session_id=target.session_id,
            expected=made.step,
            got=step,
        )
    return made


async def _read(engine: Engine, key: SessionKey, step: int | None) -> Record:
    await engine.settle(key)
    record = await engine.look_up(key)
    decide(Ask(key.session_id, step, act=Act.COPY), record)
    return record


async def _put(
    engine: Engine, key: SessionKey, copy: Record, ask: Ask, most: int | None
) -> Record | None:
    def put(before: Record | None) -> Record:
        decide(ask, before)
        return copy

    before, _ = await engine.change(key, put, most)
    engine.catalog.note_use(copy.model, copy.version)
    return before
