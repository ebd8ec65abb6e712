"""Where sessions live between requests: one contract, the same for every store.

Rules
- A commit says which record it was computed from; if the store now holds another (or none, or
  one where there was none), the commit is LOST and nothing changes. A record is told from
  another by its birth and its step, so a session that was dropped and began again under the same
  key is never taken for the old one.
- Every commit gives its session a new `idle_timeout_s`. A session whose time is up does not
  exist, for every call. Time is the store's: workers and machines that share a store share it.
- A full store refuses new sessions; it never drops a live one to make room.
- Each commit is whole: state and last reply together, or neither.
- What fails (`StoreUnavailableError`, `StoreFullError`) may have been done or not, each commit for
  itself, but never in part: whoever asks again with the same `step` finds out.
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Protocol

import msgspec

from service.session import Record, SessionKey
from service.store.table import Table


class Outcome(Enum):
    """What became of one commit."""

    DONE = auto()
    LOST = auto()  # the store holds another record than `before`: reload and decide again
    FULL = auto()  # a new session, and the store holds `max_sessions` live ones
    TENANT_FULL = auto()  # a new session, and its tenant has `most` live ones
    NO_SPACE = auto()  # there is no space for `after`, as on a full disk; nothing changed


class Commit(msgspec.Struct, frozen=True, gc=False):
    """Replace `before` (None: no session) by `after` (None: forget the session)."""

    key: SessionKey
    before: Record | None
    after: Record | None
    most: int | None = None  # live sessions of its tenant; None: as many as the store takes


class Store(Protocol):
    """Opened with `max_sessions` and `idle_timeout_s`.

    Raises, every method:
        StoreUnavailableError: the store cannot be reached. Try again later.
        StoreFullError: it has no space left, as on a full disk.
    """

    @property
    def table(self) -> Table:
        """Its live sessions as rows of arrays."""
        ...

    async def get(self, keys: Sequence[SessionKey]) -> list[Record | None]:
        """The live record of each key, None where there is none."""
        ...

    async def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        """Compare and set, each commit for itself; no key may come twice."""
        ...

    async def count(self, tenant: str | None = None) -> int:
        """How many sessions are live: of a tenant, or (None) of all."""
        ...

    async def room_in_s(self, tenant: str | None = None) -> float:
        """Seconds until the first live session, of a tenant or of all, expires; inf: there is none.

        For a Retry-After: it may be some seconds out of date, and a session may live on.
        """
        ...

    async def sweep(self) -> list[SessionKey]:
        """Forget sessions whose time is up, some of them if they are many.

        Each is given to one caller once, of all who share the store.
        """
        ...

    async def close(self) -> None:
        """Release what this process holds; no call may follow."""
        ...


def is_same(one: Record | None, other: Record | None) -> bool:
    """Whether both are the same record of the same session."""
    if one is None or other is None:
        return one is other
    return (one.birth, one.step) == (other.birth, other.step)
