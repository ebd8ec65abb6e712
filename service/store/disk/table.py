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
    SUM_AT,
    TENANT_BITS,
    TENANT_MASK,
    WORD,
    class_for,
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

_COLUMNS = 6  # of a seat: its entry's first two words, then these
_SEEN = 2  # the word that the session was last seen with, of a record of ..
_KIND = 3  # .. this kind; 0: not known
_LIKE = 4  # its key's bytes, and the class of its slot
_ENTRY = 5  # its number in the index
_CLASS_BITS = 8


@dataclass(slots=True)
class _Group:
    """Rows of which keys are equally long and slots equally large."""

    of: Array | slice  # (n,) positions in the look
    keyed: int  # bytes of tenant and session id
    number: int  # the class of the slots
    heads: Array  # (n, bytes up to the state) uint8, as the slots hold them
    states: Array  # (n, bytes) uint8


@dataclass(slots=True)
class _Held:
    """What a look is of."""

    seats: Array  # (n,) int64
    entries: Array  # (n,) int64
    words: Array  # (n,) uint64
    generation: int  # of the index
    groups: list[_Group]


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
        self._dtypes: dict[tuple[int, int, RecordRows], np.dtype[np.void]] = {}
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
        words = columns[:, _SEEN]
        slots = slots_of(words)
        groups = [
            self._gather(of, like, slots[of], records) for of, like in _alike(columns[:, _LIKE])
        ]
        held = _Held(seats, at, words, index.generation, groups)
        return Look(rows, *self._joined(groups, len(rows), records), held)

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
        like = keyed << _CLASS_BITS | class_of(held.word)
        self._columns[seat, 2:] = held.word, kind, like, held.at // ENTRY_WORDS
        return True

    def _gather(self, of: Array | slice, like: int, slots: Array, records: RecordRows) -> _Group:
        keyed, number = like >> _CLASS_BITS, like & ((1 << _CLASS_BITS) - 1)
        file, state_at = self._slots.file(number), BODY_AT + keyed + records.state_at
        heads = file.rows[slots, :state_at]
        states = file.rows[slots, state_at : state_at + records.state.itemsize]
        return _Group(of, keyed, number, heads, states)

    def _joined(self, groups: list[_Group], rows: int, records: RecordRows) -> tuple[Array, Array]:
        """(n,) int64 the steps, and (n,) the states."""
        steps = np.empty(rows, np.int64)
        for group in groups:
            steps[group.of] = self._slot_rows(group.heads, group.keyed, records)["step"]
        if len(groups) == 1:
            states = groups[0].states
        else:
            states = np.empty((rows, records.state.itemsize), np.uint8)
            for group in groups:
                states[group.of] = group.states
        return steps, states.view(records.state)[:, 0]

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
        for group in held.groups:
            of, heads = group.of, group.heads
            mine = done[of]
            if not mine.all():
                of, heads = np.arange(len(done))[of][mine], heads[mine]
            if not len(heads):
                continue
            number = class_for(BODY_AT + group.keyed + records.size + y.shape[1])
            slots = self._slots.take_many(number, len(heads))
            if slots is None:
                done[of] = False
                continue
            last = self._header[AT_SEQUENCE]
            self._header[AT_SEQUENCE] = last + len(heads)
            sequences = np.arange(last + 1, last + 1 + len(heads), dtype=np.uint64)
            rows = _advanced(heads, states[of], y[of])
            row = self._slot_rows(rows, group.keyed, records)
            row["sequence"] = sequences
            row["expires"] = due_ms
            row["record_bytes"] = records.size + y.shape[1]
            row["last_step"] = row["step"]
            row["step"] += np.uint64(steps)
            row["flags"] = 0
            row["y_bytes"] = y.shape[1]
            row["digest"] = digests[of]
            row["sum"] = _sums(rows)
            self._slots.write_many(number, slots, rows)
            words = pack_words(number, slots, sequences)
            # By aligned stores of 8 bytes, as `sessions` does; when it is due first.
            index.flat[at[of] + DUE] = np.uint64(due_ms << TENANT_BITS) | (
                dues[of] & np.uint64(TENANT_MASK)
            )
            index.flat[at[of] + WORD] = words
            self._slots.link_many(group.number, slots_of(held.words[of]))
            seats = held.seats[of]
            self._columns[seats, _SEEN] = words
            self._columns[seats, _LIKE] = group.keyed << _CLASS_BITS | number
        if due_ms < self._header[AT_FIRST_DUE] and done.any():
            self._header[AT_FIRST_DUE] = due_ms
        return np.asarray(done)

    def _slot_rows(self, raw: Array, keyed: int, records: RecordRows) -> Array:
        """(n,) slots by their fields: `SLOT_HEAD`, `SLOT_SUM`, and what changes of the record.

        Args:
            raw: (n, bytes) uint8, up to the state or the whole of them.
        """
        dtype = self._dtypes.get((keyed, raw.shape[1], records))
        if dtype is None:
            fields = {
                **_HEAD_FIELDS,
                **{
                    name: (form, BODY_AT + keyed + at)
                    for name, (form, at) in records.fields.items()
                },
            }
            dtype = np.dtype(
                {
                    "names": list(fields),
                    "formats": [form for form, _ in fields.values()],
                    "offsets": [at for _, at in fields.values()],
                    "itemsize": raw.shape[1],
                }
            )
            if len(self._dtypes) > 1024:
                self._dtypes.clear()
            self._dtypes[keyed, raw.shape[1], records] = dtype
        return raw.view(dtype)[:, 0]


_HEAD_FIELDS = {  # of a slot, as `SLOT_HEAD` and `SLOT_SUM` have them: dtype, place
    "sequence": ("=u8", 0),
    "expires": ("=u8", 8),
    "record_bytes": ("=u4", 16),
    "sum": ("=u4", SUM_AT),
}


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


def _sums(rows: Array) -> list[int]:
    """The checksum of each slot (n, bytes)."""
    size, whole = rows.shape[1], rows.data.cast("B")
    return [
        crc32(whole[at + BODY_AT : at + size], crc32(whole[at : at + SUM_AT]))
        for at in range(0, len(whole), size)
    ]


def _advanced(heads: Array, states: Array, y: Array) -> Array:
    """(n, bytes) uint8: slots with other states and y."""
    state_at = heads.shape[1]
    y_at = state_at + states.shape[1]
    rows = np.empty((len(heads), y_at + y.shape[1]), np.uint8)
    rows[:, :state_at] = heads
    rows[:, state_at:y_at] = states
    rows[:, y_at:] = y
    return rows
