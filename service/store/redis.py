"""Sessions in Redis or Valkey, one server or a cluster: many machines share them.

Rules
- A batch is one read and one commit; each is one round trip (on a cluster, one to each node). The
  scripts of `redis_layout` compare and set there, by the server's clock.
- A commit carries a token of its own, which the server keeps with the record. A commit whose reply
  was lost is sent once more and says so: the server knows its token again (DONE), finds the record
  that it was computed from (and does it now), or finds another: then nobody can tell whether it
  was done before that one, and it is `StoreUnavailableError`, not a guess.
- Limits: a process counts the sessions of all buckets, and believes its count for `COUNT_FOR_S`,
  or until it has begun a tenth of what was free then; near the limit that is one batch. Commits
  that begin sessions run one at a time in a process, so a process alone is exact. Several pass a
  limit by a batch for each of the others, or by a tenth of what was free, where all of them fill
  the store within one `COUNT_FOR_S`.
- What expired is told by `sweep` to one caller, once; if the reply to it is lost, to none.
- A tenant's count takes in sessions that have expired, while more than `SCAN` of a bucket wait for
  the sweep.
"""

import asyncio
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from service.session import Record, SessionKey
from service.store import Commit, Outcome
from service.store.record_table import RecordTable
from service.store.redis_layout import (
    ALL_BUCKETS,
    COMMIT,
    COUNT,
    EXPIRED_A_SWEEP,
    READ,
    ROOM,
    SWEEP,
    Part,
    Script,
    bucket_of,
    identity_of,
    key_of,
    member_of,
    read_record,
    write_after,
)
from service.store.redis_link import Link, UnansweredError

COUNT_FOR_S = 1.0  # how long a count is believed
ROOM_FOR_S = 1.0  # a full server asks at every refusal; `room_in_s` may be that old
SHARE = 0.1  # of what was free when it was counted
TOKEN_BYTES = 8

OUTCOMES = {
    b"D": Outcome.DONE,
    b"L": Outcome.LOST,
    b"F": Outcome.FULL,
    b"T": Outcome.TENANT_FULL,
}
UNKNOWN = b"U"


@dataclass(slots=True)
class _Count:
    """Live sessions of a tenant, or of all."""

    counted: int
    at: float  # time.monotonic()
    begun: int = 0  # by this process, since
    ended: int = 0

    @property
    def sessions(self) -> int:
        return self.counted + self.begun - self.ended


class RedisStore:
    """As `Store` says."""

    def __init__(self, link: Link, max_sessions: int, idle_timeout_s: float) -> None:
        self.table = RecordTable(self)
        self._link = link
        self._max_sessions = max_sessions
        self._idle_timeout_ms = max(1, round(idle_timeout_s * 1000))
        self._counts: dict[str | None, _Count] = {}  # None: of all
        self._rooms: dict[str | None, tuple[float, float]] = {}  # when it expires, asked when
        self._beginning = asyncio.Lock()

    async def get(self, keys: Sequence[SessionKey]) -> list[Record | None]:
        if not keys:
            return []
        raws = await self._ask_each(READ, [], [[member_of(key)] for key in keys])
        return [read_record(raw) for raw in raws]

    async def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        if not commits:
            return []
        if not any(_begins(commit) for commit in commits):
            return await self._commit(commits, {})
        async with self._beginning:
            return await self._commit(commits, await self._without_room(commits))

    async def count(self, tenant: str | None = None) -> int:
        return (await self._count([] if tenant is None else [tenant]))[-1]

    async def room_in_s(self, tenant: str | None = None) -> float:
        now = time.monotonic()
        expires_at, asked_at = self._rooms.get(tenant, (math.inf, -math.inf))
        if now - asked_at > ROOM_FOR_S or expires_at == math.inf:
            arguments = [] if tenant is None else [tenant.encode()]
            replies = await self._ask(ROOM, [], [Part(one, arguments) for one in ALL_BUCKETS])
            first_ms = min((float(one[0]) for one in replies if one), default=math.inf)
            expires_at = time.monotonic() + first_ms / 1000
            self._rooms[tenant] = expires_at, now
        return max(0.0, expires_at - time.monotonic())

    async def sweep(self) -> list[SessionKey]:
        parts = [Part(bucket, []) for bucket in ALL_BUCKETS]
        replies = await self._run_last(SWEEP, [EXPIRED_A_SWEEP], parts)
        return [key_of(member) for reply in replies for member in reply]

    async def close(self) -> None:
        await self._link.close()

    # Commits ------------------------------------------------------------------------------------

    async def _commit(self, commits: Sequence[Commit], full: dict[int, bytes]) -> list[Outcome]:
        arguments = [
            [
                member_of(commit.key),
                identity_of(commit.before),
                write_after(commit.after),
                full.get(at, b""),
            ]
            for at, commit in enumerate(commits)
        ]
        token = os.urandom(TOKEN_BYTES)
        parts, order = _by_bucket(arguments)
        try:
            replies = await self._link.run(COMMIT, [self._idle_timeout_ms, token, b"0"], parts)
        except UnansweredError:
            again = [self._idle_timeout_ms, token, b"1"]
            replies = await self._run_last(COMMIT, again, parts, insist=True)
        letters = _in_order(replies, order)
        if UNKNOWN in letters:
            raise self._link.unavailable()
        outcomes = [OUTCOMES[letter] for letter in letters]
        for commit, outcome in zip(commits, outcomes, strict=True):
            if outcome is Outcome.DONE:
                self._note(commit)
        return outcomes

    async def _without_room(self, commits: Sequence[Commit]) -> dict[int, bytes]:
        """The commits, by place, that must not begin a session, and the letter for each."""
        begun = [(at, commit) for at, commit in enumerate(commits) if _begins(commit)]
        wanted = Counter(commit.key.tenant for _, commit in begun)
        limits: dict[str | None, int] = {
            commit.key.tenant: commit.most for _, commit in begun if commit.most is not None
        }
        limits[None] = self._max_sessions
        if any(
            self._must_count(whose, len(begun) if whose is None else wanted[whose], most)
            for whose, most in limits.items()
        ):
            await self._count([whose for whose in limits if whose is not None])
        room = {whose: most - self._counts[whose].sessions for whose, most in limits.items()}
        full: dict[int, bytes] = {}
        for at, commit in begun:
            tenant = commit.key.tenant
            if room[None] <= 0:
                full[at] = b"F"
            elif tenant in room and room[tenant] <= 0:
                full[at] = b"T"
            else:
                room[None] -= 1
                if tenant in room:
                    room[tenant] -= 1
        return full

    def _must_count(self, whose: str | None, wanted: int, most: int) -> bool:
        known = self._counts.get(whose)
        return (
            known is None
            or time.monotonic() - known.at > COUNT_FOR_S
            or known.begun + wanted > SHARE * (most - known.counted)
        )

    async def _count(self, tenants: Sequence[str]) -> list[int]:
        """The live sessions of all, then of each tenant, from the server."""
        arguments = [tenant.encode() for tenant in tenants]
        replies = await self._ask(COUNT, [], [Part(one, arguments) for one in ALL_BUCKETS])
        sums = [sum(column) for column in zip(*replies, strict=True)]
        now = time.monotonic()
        for whose, sessions in zip((None, *tenants), sums, strict=True):
            self._counts[whose] = _Count(sessions, now)
        return sums

    def _note(self, commit: Commit) -> None:
        """Keep the counts in step with what this process does."""
        for whose in (None, commit.key.tenant):
            if whose in self._counts:
                self._counts[whose].begun += _begins(commit)
                self._counts[whose].ended += commit.before is not None and commit.after is None

    # Calls --------------------------------------------------------------------------------------

    async def _ask_each(
        self, script: Script, common: Sequence[Any], arguments: Sequence[Sequence[bytes]]
    ) -> list[Any]:
        parts, order = _by_bucket(arguments)
        return _in_order(await self._ask(script, common, parts), order)

    async def _ask(
        self, script: Script, common: Sequence[Any], parts: Sequence[Part]
    ) -> list[list[Any]]:
        """A call that changes nothing, so it may be made twice."""
        try:
            return await self._link.run(script, common, parts)
        except UnansweredError:
            return await self._run_last(script, common, parts)

    async def _run_last(
        self, script: Script, common: Sequence[Any], parts: Sequence[Part], insist: bool = False
    ) -> list[list[Any]]:
        """A call that is not made again if it stays without an answer."""
        try:
            return await self._link.run(script, common, parts, insist)
        except UnansweredError:
            raise self._link.unavailable() from None


def _begins(commit: Commit) -> bool:
    return commit.before is None and commit.after is not None


def _by_bucket(arguments: Sequence[Sequence[bytes]]) -> tuple[list[Part], list[list[int]]]:
    """Parts by bucket, of arguments that begin with a member; and which places each part has."""
    places: dict[int, list[int]] = {}
    for at, (member, *_) in enumerate(arguments):
        places.setdefault(bucket_of(member), []).append(at)
    parts = [
        Part(ALL_BUCKETS[number], [one for at in where for one in arguments[at]])
        for number, where in places.items()
    ]
    return parts, list(places.values())


def _in_order(replies: Iterable[Sequence[Any]], order: Sequence[Sequence[int]]) -> list[Any]:
    """The replies of `_by_bucket`'s parts, in the order of its arguments."""
    found: list[Any] = [None] * sum(map(len, order))
    for reply, where in zip(replies, order, strict=True):
        for at, one in zip(where, reply, strict=True):
            found[at] = one
    return found
