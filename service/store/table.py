"""A store whose live sessions can also be advanced as rows of arrays: many of one model at once.

Rules
- What a table commits is what `Store.commit` would have: the same records, compared and set row by
  row. Rows that it cannot take (their session is gone, or moved on, or is of another model, its
  last reply has a key, there is no room) are left out, as they were, and go the other way.
- A seat is a session's number in this process. Of another `generation` than the table's it means
  nothing.

One store has a table of its own (`service/store/disk/table.py`); the others have one that is made
of `get` and `commit` (`service/store/record_table.py`).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from service.session import Record, SessionKey
from service.store.record_bytes import RecordRows

Array = np.ndarray

MAX_SEATS = 1 << 20  # some 300 MB; then all are given anew


@dataclass(slots=True)
class Look:
    """What was read of those of the seats asked for that are there, n of them."""

    rows: Array  # (n,) int64: which of the seats asked for, ascending
    steps: Array  # (n,) int64: the index of the next step
    states: Array  # (n,) blobs, of `RecordRows`' dtype
    held: Any  # the table's own, for the commit


class Table(Protocol):
    """Of one store, for one process."""

    @property
    def generation(self) -> int:
        """Of the seats."""
        ...

    def note(self, key: SessionKey, record: Record) -> None:
        """The store was given this record; for tables that cannot look for themselves."""
        ...

    def seat(self, key: SessionKey) -> tuple[int, str, str] | None:
        """A live session's seat, its model and version; None: there is no such session."""
        ...

    def known(self, key: SessionKey) -> int | None:
        """The seat that a session was given, living or not; None: none."""
        ...

    def keys(self, seats: Array) -> list[SessionKey]:
        """Whose they are; seats of this generation."""
        ...

    async def read(self, seats: Array, records: RecordRows) -> Look:
        """What the store holds for (N,) seats, of those that live on `records`' model.

        Raises:
            StoreUnavailableError: the store cannot be reached.
        """
        ...

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
        """Advance rows of a look, which is not used again.

        Args:
            wanted: (n,) bool: which of its rows.
            steps: how many each has taken.
            digests: (n,) V16, `digest_of` their requests' rows.
            states: (n,) blobs.
            y: (n, bytes) uint8, of their last replies.
        Returns:
            (n,) bool: which are done. The others are as they were.
        Raises:
            StoreUnavailableError: what was to be done is done in part, row by row.
        """
        ...
