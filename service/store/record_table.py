"""The table of a store that keeps records: rows of arrays outside, `get` and `commit` inside.

It spares a row what it costs the engine by itself; what the store costs stays. A session has a seat
once one of its records was committed here.
"""

import numpy as np

from service.session import LastReply, Record, SessionKey
from service.store import Commit, Outcome, Store
from service.store.record_bytes import RecordRows
from service.store.table import MAX_SEATS, Array, Look


class RecordTable:
    """Of one store, for one process."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seats: dict[SessionKey, int] = {}
        self._keys: list[SessionKey] = []  # by seat
        self._homes: list[tuple[str, str]] = []  # by seat: model and version
        self.generation = 0  # of the seats

    def note(self, key: SessionKey, record: Record) -> None:
        """The store holds this record now."""
        home = record.model, record.version
        seat = self._seats.get(key)
        if seat is not None:
            self._homes[seat] = home
            return
        if len(self._seats) == MAX_SEATS:
            self._seats.clear()
            self._keys.clear()
            self._homes.clear()
            self.generation += 1
        self._seats[key] = len(self._seats)
        self._keys.append(key)
        self._homes.append(home)

    def seat(self, key: SessionKey) -> tuple[int, str, str] | None:
        """A session's seat, its model and version as they were last noted; None: none were."""
        seat = self._seats.get(key)
        return None if seat is None else (seat, *self._homes[seat])

    def known(self, key: SessionKey) -> int | None:
        """The seat that a session was given, living or not; None: none."""
        return self._seats.get(key)

    def keys(self, seats: Array) -> list[SessionKey]:
        """Whose they are; seats of this generation."""
        return [self._keys[seat] for seat in seats.tolist()]

    async def read(self, seats: Array, records: RecordRows) -> Look:
        """What the store holds for (N,) seats, of those that live on `records`' model."""
        keys = self.keys(seats)
        found = await self._store.get(keys)
        rows: list[int] = []
        befores: list[Record] = []
        for row, record in enumerate(found):
            if record is not None and records.has(record):
                rows.append(row)
                befores.append(record)
        return Look(
            np.array(rows, np.int64),
            np.array([record.step for record in befores], np.int64),
            np.frombuffer(b"".join([record.state for record in befores]), records.state),
            [(keys[row], before) for row, before in zip(rows, befores, strict=True)],
        )

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
        rows = np.flatnonzero(wanted)
        commits: list[Commit] = []
        for row in rows.tolist():
            key, before = look.held[row]
            last = LastReply(before.step, digests[row].tobytes(), y[row].tobytes(), False)
            state, step = states[row].tobytes(), before.step + steps
            after = Record(before.birth, before.model, before.version, step, state, last)
            commits.append(Commit(key, before, after))
        outcomes = await self._store.commit(commits) if commits else []
        done = np.zeros(len(wanted), bool)
        done[rows] = [outcome is Outcome.DONE for outcome in outcomes]
        return done
