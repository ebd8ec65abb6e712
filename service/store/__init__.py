"""Where sessions live between requests: one contract, the same for every store.

Rules
- A commit says which record it was computed from; if the store now holds another (or none, or
  one where there was none), the commit is LOST and nothing changes. A record is told from
  another by its birth and its step, so a session that was dropped and began again under the same
  key is never taken for the old one.
- A record whose time is up does not exist, for every call.
- A full store refuses new sessions; it never drops a live one to make room.
- Each commit is whole: state and last reply together, or neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from service.session import Record, SessionKey


class Outcome(Enum):
    """What became of one commit."""

    DONE = auto()
    LOST = auto()  # the store holds another record than `before`: reload and run again
    FULL = auto()  # a new session, and the store holds `max_sessions` live ones


@dataclass(frozen=True, slots=True)
class Commit:
    """Replace `before` (None: no record) by `after`."""

    key: SessionKey
    before: Record | None
    after: Record


class Store(Protocol):
    """Every method takes the time as `now`, seconds on the clock of `Record.expires_at`."""

    async def get(self, keys: Sequence[SessionKey], now: float) -> list[Record | None]:
        """The live record of each key, None where there is none."""
        ...

    async def commit(self, commits: Sequence[Commit], now: float) -> list[Outcome]:
        """Compare and set, each commit for itself; no key may come twice."""
        ...

    async def drop(self, key: SessionKey, now: float) -> Record | None:
        """Forget a session; the record that was there."""
        ...

    async def count(self, now: float) -> int:
        """How many sessions are live."""
        ...

    async def room_in_s(self, now: float) -> float:
        """Seconds until the first live session expires; 0 if there is room now."""
        ...

    async def close(self) -> None:
        """Release what the store holds; no call may follow."""
        ...


def is_same(one: Record | None, other: Record | None) -> bool:
    """Whether both are the same record of the same session."""
    if one is None or other is None:
        return one is other
    return (one.birth, one.step) == (other.birth, other.step)
