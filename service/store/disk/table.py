"""The disk store's live sessions as rows of arrays; see `service/store/table.py`.

Rules
- What is written is to the byte what `sessions` writes.
- Reading takes no lock: a row counts only if its commit finds the index's word as it was read, and
  then its slot was never free in between.
- A slot that this process did not write itself is read whole by `sessions` first, which compares
  its checksum.

How it works: a session that was found once has a seat, and there in numbers its hash, its entry in
the index, the word that it was last seen with, and what its slot is like. `read` compares the
entries of many seats with that, and gathers their slots; `commit` writes the same slots again with
a new state, step, digest and y.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from service.session import Record, SessionKey
from service.store.disk.directory import Directory
from service.store.disk.index import Index
from service.store.disk.layout import (
    AT_FIRST_DUE,
    AT_SEEN,
    AT_SEQUENCE,
    BODY_AT,
    DUE,
    ENTRY_WORDS,
    SLOT_BYTES,
    SUM_AT,
    TENANT_BITS,
    TENANT_MASK,
    WORD,
    class_of,
    pack_words,
    slots_of,
)
from service.store.disk.lock import Lock
from service.store.disk.recovery import hash_of
from service.store.disk.sessions import Sessions, Unsettled
from service.store.disk.slots import Slots, as_bytes
from service.store.record_bytes import RecordRows
from service.store.table import MAX_SEATS, Look

Array = np.ndarray

_COLUMNS = 7  # of a seat: its entry's first two words, then these
_SEEN = 2  # the word that the session was last seen with, of a record of ..
_KIND = 3  # .. this kind; 0: not known
_CLASS = 4  # of its slot
_KEYED = 5  # bytes of tenant and session id
_ENTRY = 6  # its number in the index
_CLASS_BITS = 8


@dataclass(slots=True)
class _Held:
    """What a look is of: n rows."""

    seats: Array  # (n,) int64
    entries: Array  # (n,) int64
    words: Array  # (n,) uint64
    generation: int  # of the index
    classes: Array  # (n,) int64, of the slots
    keyed: Array  # (n,) int64, bytes of tenant and session id
    heads: Array  # (n,) the records up to their names


class DiskTable:
    """Of one store of durability `process`, for one process."""

    def __init__(
        self,
        directory: Directory,
        sessions: Sessions,
        lock: Lock,
        now_ms: Callable[[], int],
        timeout_ms: int,
    ) -> None:
        """`now_ms`: the store's time."""
        self._header = directory.header
        self._salt = directory.salt
        self._sessions = sessions
        self._lock = lock
        self._now_ms = now_ms
        self._timeout_ms = timeout_ms
        self._seats: dict[SessionKey, int] = {}
        self._keys: list[SessionKey] = []  # by seat
        self._columns: Array = np.zeros((1024, _COLUMNS), np.uint64)
        self._index_generation = sessions.index.generation  # of the entries in it
        self._kinds: dict[RecordRows, int] = {}
        self.generation = 0  # of the seats

    @property
    def _index(self) -> Index:
        return self._sessions.index

    @property
    def _slots(self) -> Slots:
        return self._sessions.slots

    def note(self, key: SessionKey, record: Record) -> None:
        """Nothing: it looks for itself."""

    def seat(self, key: SessionKey) -> tuple[int, str, str] | None:
        """A live session's seat, its model and version; None: there is no such session."""
        self._index.refresh()
        try:
            held = self._sessions.find(key, self._now_ms())
        except Unsettled:
            return None
        if held is None:
            return None
        found = self._seats.get(key)
        if found is None:
            found = self._new_seat(key)
        return found, held.record.model, held.record.version

    def known(self, key: SessionKey) -> int | None:
        """The seat that a session was given, living or not; None: none."""
        return self._seats.get(key)

    def keys(self, seats: Array) -> list[SessionKey]:
        """Whose they are; seats of this generation."""
        return [self._keys[seat] for seat in seats.tolist()]

    def _new_seat(self, key: SessionKey) -> int:
        if len(self._seats) == MAX_SEATS:
            self._seats.clear()
            self._keys.clear()
            self.generation += 1
        seat = self._seats[key] = len(self._seats)
        self._keys.append(key)
        if seat == len(self._columns):
            self._columns = np.concatenate([self._columns, np.zeros_like(self._columns)])
        tenant, session_id = as_bytes(key.tenant), as_bytes(key.session_id)
        self._columns[seat] = 0
        self._columns[seat, :2] = hash_of(self._salt, tenant, session_id)
        return seat

    # Reading ------------------------------------------------------------------------------------

    async def read(self, seats: Array, records: RecordRows) -> Look:
        """What the store holds for (N,) seats, of those that live on `records`' model."""
        index = self._index
        index.refresh()
        if index.generation != self._index_generation:
            self._columns[:, _KIND] = self._columns[:, _ENTRY] = 0
            self._index_generation = index.generation
        now_ms = self._now_ms()
        kind = self._kinds.setdefault(records, len(self._kinds) + 1)
        columns = self._columns[seats]
        at = columns[:, _ENTRY].astype(np.int64)
        entries = index.entries[at]
        differs = (entries[:, :3] != columns[:, :3]).any(axis=1)
        differs |= columns[:, _KIND] != kind
        differs |= entries[:, DUE] < _first_due(now_ms)
        rows = np.arange(len(seats))
        if differs.any():
            lives = ~differs
            for row in np.flatnonzero(differs).tolist():
                lives[row] = self._look_again(int(seats[row]), records, kind, now_ms)
            rows = np.flatnonzero(lives)
            seats = seats[rows]
            columns = self._columns[seats]
            at = columns[:, _ENTRY].astype(np.int64)
        words, classes, keyed = columns[:, _SEEN], columns[:, _CLASS], columns[:, _KEYED]
        classes, keyed = classes.astype(np.int64), keyed.astype(np.int64)
        head_bytes, state_bytes = records.head.itemsize, records.state.itemsize
        heads = np.empty((0, head_bytes), np.uint8)
        states = np.empty((0, state_bytes), np.uint8)
        for of, number in _alike(classes):
            file = self._slots.file(number)
            starts = slots_of(words[of]) * file.size + BODY_AT + keyed[of]
            some_heads = file.window(head_bytes)[starts]
            some_states = file.window(state_bytes)[starts + records.state_at]
            if isinstance(of, slice):  # all, as almost always
                heads, states = some_heads, some_states
                break
            if not len(heads):
                heads = np.empty((len(rows), head_bytes), np.uint8)
                states = np.empty((len(rows), state_bytes), np.uint8)
            heads[of], states[of] = some_heads, some_states
        held = _Held(
            seats, at, words, index.generation, classes, keyed, heads.view(records.head)[:, 0]
        )
        steps = held.heads["step"].astype(np.int64)
        return Look(rows, steps, states.view(records.state)[:, 0], held)

    def _look_again(self, seat: int, records: RecordRows, kind: int, now_ms: int) -> bool:
        """Read a session whole, and note what it is like; whether it lives, on `records`' model."""
        key = self._keys[seat]
        try:
            held = self._sessions.find(key, now_ms)
        except Unsettled:
            return False
        if held is None or not records.has(held.record):
            return False
        keyed = len(as_bytes(key.tenant)) + len(as_bytes(key.session_id))
        entry = held.at // ENTRY_WORDS
        self._columns[seat, 2:] = held.word, kind, class_of(held.word), keyed, entry
        return True

    # Committing, under the lock -----------------------------------------------------------------

    async def commit(
        self,
        look: Look,
        wanted: Array,
        records: RecordRows,
        steps: int,
        digests: Array,
        states: Array,
        y: Array,
    ) -> Array:
        """Advance rows of a look; which of them, (n,) bool, are done."""
        with await self._lock.turn():
            return self._commit(look.held, wanted, records, steps, digests, states, y)

    def _commit(
        self,
        held: _Held,
        wanted: Array,
        records: RecordRows,
        steps: int,
        digests: Array,
        states: Array,
        y: Array,
    ) -> Array:
        index = self._index
        index.refresh()
        now_ms = self._header[AT_SEEN] = self._now_ms()
        if index.generation != held.generation:
            return np.zeros(len(wanted), bool)
        at = held.entries * ENTRY_WORDS
        dues = index.flat[at + DUE]
        done = wanted & (index.flat[at + WORD] == held.words) & (dues >= _first_due(now_ms))
        due_ms = now_ms + self._timeout_ms
        states = states.view(np.uint8).reshape(len(states), states.itemsize)
        heads = held.heads
        heads["last_step"] = heads["step"]
        heads["step"] += np.uint64(steps)
        heads["flags"] = 0
        heads["y_bytes"] = y.shape[1]
        heads["digest"] = digests
        heads = heads.view(np.uint8).reshape(len(heads), heads.itemsize)
        ends = BODY_AT + held.keyed + records.size + y.shape[1]  # of what is used of a slot
        numbers = np.searchsorted(_SIZES, ends)
        rows = slice(None) if done.all() else np.flatnonzero(done)
        for among, like in _alike((held.classes << _CLASS_BITS | numbers)[rows]):
            of = among if isinstance(rows, slice) else rows[among]
            was, number = like >> _CLASS_BITS, like & (1 << _CLASS_BITS) - 1
            words, used = held.words[of], ends[of]
            slots = self._slots.take_many(number, len(words))
            if slots is None:
                done[of] = False
                continue
            sequences = self._sequences(len(words))
            old_slots, old, new = slots_of(words), self._slots.file(was), self._slots.file(number)
            # All up to the state; of shorter keys more than that, which is written over below.
            size = BODY_AT + int(held.keyed[of].max()) + records.state_at
            tops = old.window(size)[old_slots * old.size]
            top = tops[:, :BODY_AT].view(_TOP)[:, 0]
            top["sequence"] = sequences
            top["expires"] = due_ms
            top["record_bytes"] = records.size + y.shape[1]
            starts = slots * new.size
            new.window(size)[starts] = tops
            record = starts + BODY_AT + held.keyed[of]
            new.window(heads.shape[1])[record] = heads[of]
            new.window(states.shape[1])[record + records.state_at] = states[of]
            new.window(y.shape[1])[record + records.size] = y[of]
            new.halves[starts + SUM_AT >> 2] = _sums(new.bytes, tops, starts, used)
            self._slots.mark(number)
            fresh = pack_words(number, slots, sequences)
            # By aligned stores of 8 bytes, as `sessions` does; when it is due first.
            due = np.uint64(due_ms << TENANT_BITS) | dues[of] & np.uint64(TENANT_MASK)
            index.flat[at[of] + DUE] = due
            index.flat[at[of] + WORD] = fresh
            self._slots.link_many(was, old_slots)
            seats = held.seats[of]
            self._columns[seats, _SEEN] = fresh
            self._columns[seats, _CLASS] = number
        if due_ms < self._header[AT_FIRST_DUE] and done.any():
            self._header[AT_FIRST_DUE] = due_ms
        return np.asarray(done)

    def _sequences(self, count: int) -> Array:
        """(count,) uint64: the next sequence numbers."""
        last = self._header[AT_SEQUENCE]
        self._header[AT_SEQUENCE] = last + count
        return np.arange(last + 1, last + 1 + count, dtype=np.uint64)


_TOP = np.dtype(  # `SLOT_HEAD` and `SLOT_SUM`, as far as they change
    {
        "names": ["sequence", "expires", "record_bytes"],
        "formats": ["=u8", "=u8", "=u4"],
        "offsets": [0, 8, 16],
        "itemsize": BODY_AT,
    }
)
_SIZES = np.array(SLOT_BYTES)


def _first_due(now_ms: int) -> "np.uint64":
    """The least word of an entry that says when its session expires, of those that live."""
    return np.uint64((now_ms + 1) << TENANT_BITS)


def _alike(likes: Array) -> Iterator[tuple[Array | slice, int]]:
    """The positions of equal ones, and what they are."""
    if not len(likes):
        return
    if (likes == likes[0]).all():
        yield slice(None), int(likes[0])
        return
    for like in np.unique(likes):
        yield np.flatnonzero(likes == like), int(like)


def _sums(raw: memoryview, tops: Array, starts: Array, used: Array) -> list[int]:
    """The checksum of each slot, whose used bytes are (n,) `used` from (n,) `starts` of a file."""
    size, top = tops.shape[1], tops.data.cast("B")
    bodies, ends = (starts + BODY_AT).tolist(), (starts + used).tolist()
    return [
        crc32(raw[body:end], crc32(top[at : at + SUM_AT]))
        for at, body, end in zip(range(0, len(top), size), bodies, ends, strict=True)
    ]
