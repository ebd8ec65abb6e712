"""The disk store's live sessions as rows of arrays; see `service/store/table.py`.

Rules
- What is written is to the byte what `sessions` writes. A row that it cannot read or commit as one
  of many (its session is gone, or moved on, or is of another model, or its last reply has a key; a
  full disk) is left out, unchanged, and goes that way.
- Reading takes no lock: a row counts only if its commit finds the index's word as it was read, and
  then its slot was never free in between.
- A checksum is compared where this process did not write the slot itself, or read it whole before.

How it works: a session that was found once has a seat: a number, and in arrays its hash, its entry
in the index, and the word that it was last seen with. `read` gathers the entries and slots of many
seats; `commit` writes the same slots again with a new state, step, digest and y.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from service.session import SessionKey
from service.store.disk.directory import Directory
from service.store.disk.index import Index
from service.store.disk.layout import (
    AT_FIRST_DUE,
    AT_SEEN,
    AT_SEQUENCE,
    BODY_AT,
    CLASSES,
    DUE,
    ENTRY_WORDS,
    SLOT_BYTES,
    SUM_AT,
    TENANT_BITS,
    TENANT_MASK,
    TOMB,
    WORD,
    are_of,
    class_for,
    classes_and_slots,
    pack_words,
)
from service.store.disk.lock import Lock
from service.store.disk.recovery import hash_of
from service.store.disk.sessions import Sessions, Unsettled
from service.store.disk.slots import Slots, as_bytes
from service.store.record_bytes import RecordRows
from service.store.table import Look

Array = np.ndarray

MAX_SEATS = 1 << 20  # some 300 MB; then all are given anew
_HEAD_FIELDS = {  # of a slot, as `SLOT_HEAD` has them
    "sequence": "=u8",
    "expires": "=u8",
    "record": "=u4",
    "tenant": "=u2",
    "session_id": "=u2",
}
_HASH, _ENTRY, _SEEN = slice(0, 2), 2, 3  # columns of a seat


@dataclass(slots=True)
class _Group:
    """Rows of which keys are equally long and slots equally large."""

    of: Array  # (n,) positions in the look
    keyed: int  # bytes of tenant and session id
    number: int  # the class of the slots
    raw: Array  # (n, bytes up to y) uint8, as the slots hold them


@dataclass(slots=True)
class _Held:
    """What a look is of."""

    seats: Array  # (n,) int64
    words: Array  # (n,) uint64
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
        self._columns: Array = np.zeros((1024, 4), np.uint64)  # hash, entry, word
        self._keyed: Array = np.zeros(1024, np.int64)
        self._dtypes: dict[tuple[int, int, RecordRows], np.dtype[np.void]] = {}
        self.generation = 0  # of the seats

    @property
    def _index(self) -> Index:
        return self._sessions.index

    @property
    def _slots(self) -> Slots:
        return self._sessions.slots

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
        self._columns[found, _ENTRY] = held.at // ENTRY_WORDS
        self._columns[found, _SEEN] = held.word
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
        if seat == len(self._keyed):
            self._columns = np.concatenate([self._columns, np.zeros_like(self._columns)])
            self._keyed = np.concatenate([self._keyed, np.zeros_like(self._keyed)])
        self._keys.append(key)
        tenant, session_id = as_bytes(key.tenant), as_bytes(key.session_id)
        self._columns[seat, _HASH] = hash_of(self._salt, tenant, session_id)
        self._keyed[seat] = len(tenant) + len(session_id)
        return seat

    # Reading ------------------------------------------------------------------------------------

    def read(self, seats: Array, records: RecordRows) -> Look:
        """What the store holds for (N,) seats, of those that live on `records`' model."""
        self._index.refresh()
        now_ms = self._now_ms()
        columns = self._columns[seats]
        entries, is_live = self._entries(seats, columns, now_ms)
        words = entries[:, WORD]
        classes, slots = classes_and_slots(words)
        keyed = self._keyed[seats]
        is_seen = words == columns[:, _SEEN]
        groups: list[_Group] = []
        for at in _alike(keyed, classes, is_live):
            first = at[0]
            group = self._gather(at, int(keyed[first]), int(classes[first]), slots, records)
            if group is None:
                is_live[at] = False
                continue
            is_sound = self._are_sound(group, words[at], is_seen[at], slots[at], records)
            if not is_sound.all():
                is_live[at[~is_sound]] = False
                group.of, group.raw = at[is_sound], group.raw[is_sound]
            if len(group.of):
                groups.append(group)
        return self._look(seats, words, is_live, groups, records)

    def _entries(self, seats: Array, columns: Array, now_ms: int) -> tuple[Array, Array]:
        """(N, 4) of the index, and which of them are the seats' own and live."""
        index = self._index
        at = columns[:, _ENTRY].astype(np.int64)
        inside = at < len(index.entries)
        if not inside.all():
            at[~inside] = 0
        entries = index.entries[at]
        is_own = (entries[:, _HASH] == columns[:, _HASH]).all(axis=1)
        for row in np.flatnonzero(~is_own).tolist():  # it began anew, or the index was written anew
            high, low = columns[row, _HASH].tolist()
            found = index.find(high, low)
            if found is not None:
                entry = found // ENTRY_WORDS
                columns[row, _ENTRY] = self._columns[seats[row], _ENTRY] = entry
                entries[row] = index.entries[entry]
                is_own[row] = True
        due_ms = entries[:, DUE] >> np.uint64(TENANT_BITS)
        return entries, is_own & (entries[:, WORD] > TOMB) & (due_ms > now_ms)

    def _gather(
        self, at: Array, keyed: int, number: int, slots: Array, records: RecordRows
    ) -> _Group | None:
        size = BODY_AT + keyed + records.size
        if number >= CLASSES or SLOT_BYTES[number] < size:
            return None
        file = self._slots.file(number)
        wanted = slots[at]
        if int(wanted.max()) >= self._slots.touched(number):
            return None
        return _Group(at, keyed, number, file.rows[wanted, :size])

    def _are_sound(
        self, group: _Group, words: Array, is_seen: Array, slots: Array, records: RecordRows
    ) -> Array:
        """Which slots are what the words mean, and records of this model."""
        raw = group.raw
        head = raw.view(self._dtype(group.keyed, 0, records))[:, 0]
        names = head["tenant"].astype(np.int64) + head["session_id"]
        found = are_of(words, head["sequence"]) & (names == group.keyed)
        found &= records.are(raw[:, BODY_AT + group.keyed :])
        file = self._slots.file(group.number)
        for row in np.flatnonzero(found & ~is_seen).tolist():
            content = file.read(int(slots[row]))
            found[row] = content is not None and content.sequence == int(head["sequence"][row])
        return np.asarray(found)

    def _look(
        self, seats: Array, words: Array, is_live: Array, groups: list[_Group], records: RecordRows
    ) -> Look:
        rows = np.flatnonzero(is_live)
        n = len(rows)
        if n < len(seats):
            place = np.cumsum(is_live) - 1
            for group in groups:
                group.of = place[group.of]
        parts = [(g.of, self._records(g, records)) for g in groups]

        def column(name: str, dtype: "np.dtype[np.void] | type") -> Array:
            if len(parts) == 1:
                return np.ascontiguousarray(parts[0][1][name].astype(dtype))
            whole = np.empty(n, dtype)
            for of, part in parts:
                whole[of] = part[name]
            return whole

        held = _Held(seats[rows], words[rows], groups)
        return Look(rows, column("step", np.int64), column("state", records.dtype["state"]), held)

    def _records(self, group: _Group, records: RecordRows) -> Array:
        return group.raw[:, BODY_AT + group.keyed :].view(records.dtype)[:, 0]

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
            return self._commit(look, wanted, records, steps, digests, states, y)

    def _commit(
        self,
        look: Look,
        wanted: Array,
        records: RecordRows,
        steps: int,
        digests: Array,
        states: Array,
        y: Array,
    ) -> Array:
        self._index.refresh()
        now_ms = self._header[AT_SEEN] = self._now_ms()
        held: _Held = look.held
        columns = self._columns[held.seats]
        entries, is_live = self._entries(held.seats, columns, now_ms)
        done = wanted & is_live & (entries[:, WORD] == held.words)
        due_ms = now_ms + self._timeout_ms
        for group in held.groups:
            mine = done[group.of]
            if not mine.all():
                group.of, group.raw = group.of[mine], group.raw[mine]
            of = group.of
            if not len(of):
                continue
            number = class_for(BODY_AT + group.keyed + records.size + y.shape[1])
            slots = self._slots.take_many(number, len(of))
            if slots is None:
                done[of] = False
                continue
            taken = np.array(slots, np.int64)
            last = self._header[AT_SEQUENCE]
            sequences = np.arange(last + 1, last + 1 + len(of), dtype=np.uint64)
            self._header[AT_SEQUENCE] = last + len(of)
            rows = self._advanced(
                group, records, steps, sequences, due_ms, digests[of], states[of], y[of]
            )
            self._slots.write_many(number, taken, rows)
            words = pack_words(number, taken, sequences)
            self._publish(columns[of, _ENTRY], entries[of, DUE], due_ms, words)
            self._columns[held.seats[of], _SEEN] = words
            old = classes_and_slots(held.words[of])[1]
            self._slots.link_many(group.number, old)
        if due_ms < self._header[AT_FIRST_DUE] and done.any():
            self._header[AT_FIRST_DUE] = due_ms
        return np.asarray(done)

    def _publish(self, entries: Array, dues: Array, due_ms: int, words: Array) -> None:
        """By aligned stores of 8 bytes, as `sessions` does: when it is due first."""
        flat = self._index.flat
        at = entries.astype(np.int64) * ENTRY_WORDS
        flat[at + DUE] = np.uint64(due_ms << TENANT_BITS) | (dues & np.uint64(TENANT_MASK))
        flat[at + WORD] = words

    def _advanced(
        self,
        group: _Group,
        records: RecordRows,
        steps: int,
        sequences: Array,
        due_ms: int,
        digests: Array,
        states: Array,
        y: Array,
    ) -> Array:
        """(n, bytes) uint8: the group's slots as they are after `steps` more."""
        before = group.raw.shape[1]
        raw = np.empty((len(group.raw), before + y.shape[1]), np.uint8)
        raw[:, :before] = group.raw
        raw[:, before:] = y
        row = raw.view(self._dtype(group.keyed, y.shape[1], records))[:, 0]
        row["sequence"] = sequences
        row["expires"] = due_ms
        row["record"] = records.size + y.shape[1]
        record = row["records"]
        record["last_step"] = record["step"]
        record["step"] += np.uint64(steps)
        record["flags"] = 0
        record["y_bytes"] = y.shape[1]
        record["digest"] = digests
        record["state"] = states
        size, whole = raw.shape[1], raw.data.cast("B")
        row["sum"] = [
            crc32(whole[at + BODY_AT : at + size], crc32(whole[at : at + SUM_AT]))
            for at in range(0, len(whole), size)
        ]
        return raw

    def _dtype(self, keyed: int, y_bytes: int, records: RecordRows) -> "np.dtype[np.void]":
        """A slot as a row; `SLOT_HEAD`, `SLOT_SUM`, the key, the record."""
        found = self._dtypes.get((keyed, y_bytes, records))
        if found is None:
            found = np.dtype(
                {
                    "names": [*_HEAD_FIELDS, "sum", "records"],
                    "formats": [*_HEAD_FIELDS.values(), "=u4", records.dtype],
                    "offsets": [0, 8, 16, 20, 22, SUM_AT, BODY_AT + keyed],
                    "itemsize": BODY_AT + keyed + records.size + y_bytes,
                }
            )
            if len(self._dtypes) > 1024:
                self._dtypes.clear()
            self._dtypes[keyed, y_bytes, records] = found
        return found


def _alike(keyed: Array, classes: Array, is_live: Array) -> Iterator[Array]:
    """The positions of the live, those together whose keys and slots are equally large."""
    at = np.flatnonzero(is_live)
    if not len(at):
        return
    kinds = keyed[at] << 8 | classes[at]
    if (kinds == kinds[0]).all():
        yield at
        return
    for kind in np.unique(kinds):
        yield at[kinds == kind]
