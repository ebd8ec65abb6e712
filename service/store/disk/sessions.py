"""What is done to the sessions in the files: found, prepared, published, expired. No asyncio.

`prepare` puts a record into a slot, `publish` makes it the session's; between the two, durability
`power` has the slots synced. What this process read or wrote last is kept, and taken for true while
the index's word and the slot's sequence number say so.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from service.errors import InternalError, StoreFullError
from service.session import Record, SessionKey
from service.store import Commit, Outcome, is_same
from service.store.disk.directory import Directory
from service.store.disk.layout import (
    AT_FIRST_DUE,
    AT_LIVE,
    AT_SEQUENCE,
    AT_TIMEOUT,
    BODY_AT,
    DUE,
    ENTRY_WORDS,
    NEVER_MS,
    TENANT_BITS,
    TENANT_MASK,
    TOMB,
    WORD,
    class_for,
    class_of,
    pack_word,
    slot_of,
)
from service.store.disk.recovery import hash_of
from service.store.disk.slots import as_bytes, pack_slot
from service.store.record_bytes import pack_record, unpack_record

CACHED_RECORDS = 4_096  # of 1 KiB: 8 MB a process
CACHED_BYTES = 1 << 16  # 64 KiB: a larger record is read again rather than kept
SCAN_ENTRIES = 1 << 16  # of the index at a time: 0.3 ms of the loop
EXPIRED_AT_ONCE = 256  # 8 us each, so 2 ms of the loop, and of the lock that all workers share
LOOK_AGAIN_MS = 250  # a full store does not look for expired sessions more often

logger = logging.getLogger("carousel.store")


@dataclass(slots=True)
class Held:
    """A record as this process last saw it, and what tells whether it is still so."""

    record: Record
    at: int  # its entry in the index
    generation: int  # of the index
    word: int
    tenant: int
    slot_words: memoryview
    slot_at: int
    sequence: int


@dataclass(slots=True)
class Write:
    """A record in its slot, not yet published."""

    key: SessionKey
    held: Held | None  # what it replaces
    due: int
    after: Held
    size: int  # bytes of its slot that are used


@dataclass(slots=True)
class Look:
    """A pass over the index for sessions whose time is up, piece by piece."""

    begun_ms: int  # of the store's time
    least_ms: int = NEVER_MS  # when the first of those that live on will be due
    generation: int = -1
    start: int = 0  # the entry to go on with; 0: at the beginning


class Unsettled(Exception):
    """An entry and its slot do not fit together: someone writes, or it is damaged."""


class Sessions:
    """All of one store, for one process."""

    def __init__(self, directory: Directory, max_sessions: int, timeout_ms: int) -> None:
        self._header = directory.header
        self._salt = directory.salt
        self._max_sessions = max_sessions
        self._timeout_ms = timeout_ms
        self.index = directory.index
        self.slots = directory.slots
        self.tenants = directory.tenants
        self.expired: list[SessionKey] = []  # forgotten, and not yet told
        self._cache: OrderedDict[SessionKey, Held] = OrderedDict()
        self._looked_ms = -LOOK_AGAIN_MS
        self._look = Look(0)

    def find(self, key: SessionKey, now_ms: int) -> Held | None:
        """The live record of a key; Unsettled if its entry and its slot do not fit together."""
        index, words = self.index, self.index.words
        held = self._cache.get(key)
        if held is not None:
            if (
                held.generation == index.generation
                and words[held.at + WORD] == held.word
                and held.slot_words[held.slot_at] == held.sequence
            ):
                return held if words[held.at + DUE] >> TENANT_BITS > now_ms else None
            del self._cache[key]
        tenant, session_id = as_bytes(key.tenant), as_bytes(key.session_id)
        at = index.find(*hash_of(self._salt, tenant, session_id))
        if at is None:
            return None
        word, due = words[at + WORD], words[at + DUE]
        if word <= TOMB or due >> TENANT_BITS <= now_ms:
            return None
        content = self.slots.read(word)
        if words[at + WORD] != word or content is None:
            raise Unsettled
        if (content.tenant, content.session_id) != (tenant, session_id):
            raise Unsettled
        record = unpack_record(content.record)
        held = self._hold(record, at, word, due & TENANT_MASK, content.sequence)
        self._keep(key, held, len(content.record))
        return held

    def find_locked(self, key: SessionKey, now_ms: int) -> Held | None:
        try:
            return self.find(key, now_ms)
        except Unsettled:
            logger.error(
                "session `%s` is damaged on disk and is not served any more: its client is told "
                "that it is gone",
                key.session_id,
            )
            at = self.index.find(*self._hash_of(key))
            if at is not None:
                self._remove(at, is_sound=False)
            return None

    def _hash_of(self, key: SessionKey) -> tuple[int, int]:
        return hash_of(self._salt, as_bytes(key.tenant), as_bytes(key.session_id))

    def _hold(self, record: Record, at: int, word: int, tenant: int, sequence: int) -> Held:
        file = self.slots.file(class_of(word))
        slot_at = file.at(slot_of(word))
        generation = self.index.generation
        return Held(record, at, generation, word, tenant, file.words, slot_at, sequence)

    def _keep(self, key: SessionKey, held: Held, size: int) -> None:
        if size > CACHED_BYTES:
            self._cache.pop(key, None)
            return
        self._cache[key] = held  # first in, first out: to keep them by last use costs 1 us a row
        if len(self._cache) > CACHED_RECORDS:
            self._cache.popitem(last=False)

    # Writing, under the lock --------------------------------------------------------------------

    def prepare(self, commit: Commit, now_ms: int) -> Write | Outcome:
        """Judge a commit and put its record into a slot; or do it, where it has none."""
        key, after = commit.key, commit.after
        held = self.find_locked(key, now_ms)
        record = None if held is None else held.record
        if record is not commit.before and not is_same(record, commit.before):
            return Outcome.LOST
        if after is None:
            if held is not None:
                self._remove(held.at)
            return Outcome.DONE
        try:
            if held is not None:
                return self._write(key, after, now_ms, held, held.tenant)
            refusal = self._refusal(commit, now_ms)
            if refusal is not None:
                return refusal
            self.index.make_room()
            return self._write(key, after, now_ms, None, self.tenants.number(key.tenant))
        except StoreFullError:
            return Outcome.NO_SPACE

    def _refusal(self, commit: Commit, now_ms: int) -> Outcome | None:
        """Why a new session is not taken, if it is not."""
        at = self.index.find(*self._hash_of(commit.key))
        if at is not None:
            self._expire(at)
        most = commit.most

        def is_full() -> bool:
            return self._header[AT_LIVE] >= self._max_sessions

        def is_tenant_full() -> bool:
            return most is not None and self.held_by(commit.key.tenant) >= most

        if is_full():
            self._look_for_expired(now_ms, while_=is_full)
            if is_full():
                return Outcome.FULL
        if is_tenant_full():
            self._look_for_expired(now_ms, while_=is_tenant_full)
            if is_tenant_full():
                return Outcome.TENANT_FULL
        return None

    def held_by(self, tenant: str) -> int:
        number = self.tenants.find(tenant)
        return 0 if number is None else self.tenants.count(number)

    def _write(
        self, key: SessionKey, after: Record, now_ms: int, held: Held | None, tenant: int
    ) -> Write:
        header, raw = self._header, pack_record(after)
        owner, session_id = as_bytes(key.tenant), as_bytes(key.session_id)
        size = BODY_AT + len(owner) + len(session_id) + len(raw)
        number, slot = self.slots.take(class_for(size), is_new=held is None)
        sequence = header[AT_SEQUENCE] = header[AT_SEQUENCE] + 1
        due_ms = now_ms + self._timeout_ms
        content = pack_slot(sequence, due_ms, owner, session_id, raw)
        self.slots.write(number, slot, content)
        if held is None:
            header[AT_LIVE] += 1
            self.tenants.add(tenant, 1)
        if due_ms < header[AT_FIRST_DUE]:
            header[AT_FIRST_DUE] = due_ms
        at = 0 if held is None else held.at
        word = pack_word(number, slot, sequence)
        placed = self._hold(after, at, word, tenant, sequence)
        return Write(key, held, due_ms << TENANT_BITS | tenant, placed, size)

    def publish(self, prepared: Write | Outcome) -> Outcome:
        if isinstance(prepared, Outcome):
            return prepared
        key, held, after = prepared.key, prepared.held, prepared.after
        index = self.index
        if held is None:
            after.at = index.insert(*self._hash_of(key), prepared.due, after.word)
        else:
            if held.generation != index.generation:  # written anew for another of the batch
                after.at = self._place_of(key)
            index.words[after.at + DUE] = prepared.due
            index.words[after.at + WORD] = after.word
            self.slots.free(held.word)
        after.generation = index.generation
        self._keep(key, after, prepared.size)
        return Outcome.DONE

    def _place_of(self, key: SessionKey) -> int:
        at = self.index.find(*self._hash_of(key))
        if at is None:
            raise InternalError(f"session `{key.session_id}` left the index under the lock")
        return at

    def _remove(self, at: int, is_sound: bool = True) -> None:
        """Forget what an entry of the index holds.

        Args:
            is_sound: its slot is its own. Else that stays as it is: it may be another's.
        """
        words = self.index.words
        word, tenant = words[at + WORD], words[at + DUE] & TENANT_MASK
        self.index.remove(at)
        if is_sound:
            self.slots.free(word)
        self._header[AT_LIVE] -= 1
        self.tenants.add(tenant, -1)

    # Expiry, under the lock ---------------------------------------------------------------------

    def _expire(self, at: int) -> None:
        content = self.slots.read(self.index.words[at + WORD])
        if content is not None:
            self.expired.append(content.key)
        self._remove(at, is_sound=content is not None)

    def _look_for_expired(self, now_ms: int, while_: Callable[[], bool]) -> None:
        """Until there is room, or all were looked at; the next look goes on from there."""
        if now_ms < max(self._header[AT_FIRST_DUE], self._looked_ms + LOOK_AGAIN_MS):
            return
        seen = 0  # entries
        while while_() and seen < len(self.index.entries):
            seen += self.expire_some(self._look, now_ms)
            if self.is_over(self._look):
                self._look = Look(now_ms)
        if while_():
            self._looked_ms = now_ms

    def expire_some(self, look: Look, now_ms: int) -> int:
        """Go on with a look, over at most `SCAN_ENTRIES`, or until `EXPIRED_AT_ONCE` are gone; how
        many entries were looked at."""
        if look.generation != self.index.generation:
            look.generation, look.start = self.index.generation, 0
        entries = self.index.entries[look.start : look.start + SCAN_ENTRIES]
        due_ms = entries[:, DUE] >> np.uint64(TENANT_BITS)
        is_used = entries[:, WORD] > TOMB
        is_due = due_ms <= now_ms
        due = np.flatnonzero(is_used & is_due)
        count = len(entries) if len(due) <= EXPIRED_AT_ONCE else int(due[EXPIRED_AT_ONCE])
        alive = due_ms[:count][(is_used & ~is_due)[:count]]
        if len(alive):
            look.least_ms = min(look.least_ms, int(alive.min()))
        for entry in due[:EXPIRED_AT_ONCE].tolist():
            self._expire((look.start + entry) * ENTRY_WORDS)
        look.start += count
        return count

    def is_over(self, look: Look) -> bool:
        """Whether all entries were looked at; then it is known when the first will be due."""
        if look.generation != self.index.generation or look.start < len(self.index.entries):
            return False
        # What was committed since it began is not due before the shortest timeout from then on.
        least_ms = min(look.least_ms, look.begun_ms + self._header[AT_TIMEOUT])
        self._header[AT_FIRST_DUE] = least_ms
        return True
