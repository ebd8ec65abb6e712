"""Sessions in this process's memory: for tests and throw-away services; a restart forgets all.

Idle sessions cost nothing per request: every commit moves its record to the end, so with one
timeout for all the order of the dict is the order of expiry, and the expired ones are in front.
"""

from collections import OrderedDict
from collections.abc import Sequence

from service.session import Record, SessionKey
from service.store import Commit, Outcome, is_same


class MemoryStore:
    """As `Store` says."""

    def __init__(self, max_sessions: int) -> None:
        self._max_sessions = max_sessions
        self._records: OrderedDict[SessionKey, Record] = OrderedDict()

    async def get(self, keys: Sequence[SessionKey], now: float) -> list[Record | None]:
        return [self._live(key, now) for key in keys]

    async def commit(self, commits: Sequence[Commit], now: float) -> list[Outcome]:
        return [self._commit_one(commit, now) for commit in commits]

    async def drop(self, key: SessionKey, now: float) -> Record | None:
        record = self._live(key, now)
        self._records.pop(key, None)
        return record

    async def count(self, now: float) -> int:
        self._forget_expired(now)
        return len(self._records)

    async def room_in_s(self, now: float) -> float:
        self._forget_expired(now)
        if len(self._records) < self._max_sessions:
            return 0.0
        return next(iter(self._records.values())).expires_at - now

    async def close(self) -> None:
        self._records.clear()

    def _commit_one(self, commit: Commit, now: float) -> Outcome:
        held = self._live(commit.key, now)
        if not is_same(held, commit.before):
            return Outcome.LOST
        if held is None:
            self._forget_expired(now)
            if len(self._records) >= self._max_sessions:
                return Outcome.FULL
        self._records[commit.key] = commit.after
        self._records.move_to_end(commit.key)
        return Outcome.DONE

    def _live(self, key: SessionKey, now: float) -> Record | None:
        record = self._records.get(key)
        return record if record is not None and now < record.expires_at else None

    def _forget_expired(self, now: float) -> None:
        while self._records:
            key, record = next(iter(self._records.items()))
            if now < record.expires_at:
                return
            del self._records[key]
