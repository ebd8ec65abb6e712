"""Copies of sessions: forks, snapshots and what is restored from them.

Rules
- A copy is of one record as the store held it: a session at a step boundary, with all that its
  requests here had waiting when it was asked for. The session itself is not touched.
- A copy is committed where its session id is free, or over the record that it was told to replace,
  by the same compare-and-set as every step.
- What fails may have been done: a look-up of the copy says whether it was.
"""

import uuid
from datetime import datetime

from service.engine import Engine
from service.session import Act, Ask, Record, SessionKey, copy_of, decide
from service.snapshot import Keyring, read_snapshot, record_of, write_snapshot


async def fork(
    engine: Engine,
    source: SessionKey,
    target_id: str | None,
    step: int | None,
    most: int | None = None,
) -> tuple[SessionKey, Record]:
    """Copy a session to `target_id`, or to an id made here; the copy's key and record.

    Args:
        most: live sessions of the tenant; None: as many as the store takes.
    Raises:
        SessionNotFoundError: there is no source.
        StepConflictError: it does not stand at `step`.
        SessionExistsError: there is a session `target_id`.
        CapacityError: there is no room for another session.
    """
    record = await _read(engine, source, step)
    target = SessionKey(source.tenant, target_id or uuid.uuid4().hex)
    copy = copy_of(record, engine.entropy())
    await _put(engine, target, copy, Ask(target.session_id, act=Act.CREATE), most)
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
