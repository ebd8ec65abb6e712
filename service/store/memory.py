"""Sessions in this process's memory: for tests and throw-away services; a restart forgets all.

Idle sessions cost nothing per request: every commit moves its session to the end, so with one
timeout for all the order of the dict is the order of expiry, and the expired ones are in front.
"""

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from service.session import Record, SessionKey
from service.store import Commit, Outcome, is_same
from service.store.record_table import RecordTable


@dataclass(frozen=True, slots=True)
class _Held:
    record: Record
    expires_at: float  # seconds, on the store's clock


class MemoryStore:
    """As `Store` says."""

    def __init__(
        self,
        max_sessions: int,
        idle_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.table = RecordTable(self)
        self._max_sessions = max_sessions
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._held: OrderedDict[SessionKey, _Held] = OrderedDict()
        self._counts: Counter[str] = Counter()  # by tenant
        self._expired: list[SessionKey] = []  # forgotten, and not yet told to `sweep`

    async def get(self, keys: Sequence[SessionKey]) -> list[Record | None]:
        now = self._clock()
        return [self._live(key, now) for key in keys]

    async def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        now = self._clock()
        return [self._commit_one(commit, now) for commit in commits]

    async def count(self, tenant: str | None = None) -> int:
        self._forget_expired(self._clock())
        return len(self._held) if tenant is None else self._counts[tenant]

    async def room_in_s(self, tenant: str | None = None) -> float:
        now = self._clock()
        self._forget_expired(now)
        return next(self._expiries(tenant), math.inf) - now

    async def sweep(self) -> list[SessionKey]:
        self._forget_expired(self._clock())
        expired, self._expired = self._expired, []
        return expired

    async def close(self) -> None:
        self._held.clear()
        self._counts.clear()

    def _expiries(self, tenant: str | None) -> Iterator[float]:
        for key, held in self._held.items():
            if tenant in (None, key.tenant):
                yield held.expires_at

    def _commit_one(self, commit: Commit, now: float) -> Outcome:
        key = commit.key
        live = self._live(key, now)
        if not is_same(live, commit.before):
            return Outcome.LOST
        if commit.after is None:
            if live is not None:
                self._forget(key)
            return Outcome.DONE
        if live is None:
            self._forget_expired(now)
            if len(self._held) >= self._max_sessions:
                return Outcome.FULL
            if commit.most is not None and self._counts[key.tenant] >= commit.most:
                return Outcome.TENANT_FULL
            self._counts[key.tenant] += 1
        self._held[key] = _Held(commit.after, now + self._idle_timeout_s)
        self._held.move_to_end(key)
        return Outcome.DONE

    def _live(self, key: SessionKey, now: float) -> Record | None:
        held = self._held.get(key)
        return held.record if held is not None and now < held.expires_at else None

    def _forget_expired(self, now: float) -> None:
        while self._held:
            key, held = next(iter(self._held.items()))
            if now < held.expires_at:
                return
            self._forget(key)
            self._expired.append(key)

    def _forget(self, key: SessionKey) -> None:
        del self._held[key]
        self._counts[key.tenant] -= 1
        if not self._counts[key.tenant]:
            del self._counts[key.tenant]
