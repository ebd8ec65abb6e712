"""The store that the engine has: locking, threads and time around `Sessions`."""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import numpy as np

from service.errors import StoreUnavailableError
from service.session import Record, SessionKey
from service.store import Commit, Outcome
from service.store.disk.directory import open_directory
from service.store.disk.layout import (
    AT_FIRST_DUE,
    AT_LIVE,
    AT_OFFSET,
    AT_SEEN,
    DUE,
    NEVER_MS,
    TENANT_BITS,
    TENANT_MASK,
    TOMB,
    WORD,
)
from service.store.disk.machine import Machine, this_machine
from service.store.disk.sessions import SCAN_ENTRIES, Look, Sessions, Unsettled, Write
from service.store.disk.table import DiskTable
from service.store.record_table import RecordTable
from service.store.table import Table

P = ParamSpec("P")
T = TypeVar("T")

Durability = Literal["process", "power"]

MOST_TOLD = 10_000  # expired sessions a sweep tells
ROOM_MS = 1_000  # how long `room_in_s` gives the same answer
ROOM_TENANTS = 1_024  # whose answers are kept


class DiskStore:
    """As `Store` says; as many of them, in as many processes, as there are workers."""

    def __init__(
        self,
        path: Path,
        max_sessions: int,
        idle_timeout_s: float,
        durability: Durability = "process",
        machine: Machine | None = None,
    ) -> None:
        """Open the store in `path`, or make one.

        Raises:
            SettingsError: the directory cannot hold one, or holds something else.
        """
        self._machine = machine or this_machine()
        timeout_ms = math.ceil(idle_timeout_s * 1000)
        is_power = durability == "power"
        self._directory = open_directory(path, max_sessions, timeout_ms, is_power, self._machine)
        self._header = self._directory.header
        self._lock = self._directory.lock()
        self._sessions = Sessions(self._directory, max_sessions, timeout_ms)
        self.table: Table = (
            RecordTable(self)
            if is_power
            else DiskTable(self._directory, self._sessions, self._lock, self._now_ms, timeout_ms)
        )
        self._guard = self._directory.guard  # of `_sessions`; not while it syncs
        self._rooms: dict[str | None, tuple[int, float]] = {}  # tenant -> when asked, seconds
        # A sync takes milliseconds: not on the loop.
        self._pool = ThreadPoolExecutor(1, "carousel-store") if is_power else None

    async def get(self, keys: Sequence[SessionKey]) -> list[Record | None]:
        try:
            return self._get(keys)
        except Unsettled:
            return await self._locked(self._get_locked, keys)

    async def commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        if self._pool is None:
            return await self._locked(self._commit, commits)
        return await self._locked(self._commit_durably, commits)

    async def count(self, tenant: str | None = None) -> int:
        await self._forget_expired(None)
        return self._header[AT_LIVE] if tenant is None else self._sessions.held_by(tenant)

    async def room_in_s(self, tenant: str | None = None) -> float:
        now_ms = self._now_ms()
        asked_ms, room_s = self._rooms.get(tenant, (-ROOM_MS, math.inf))
        if now_ms - asked_ms < ROOM_MS:
            return room_s
        room_s = (await self._first_due_ms(tenant, now_ms) - now_ms) / 1000
        if len(self._rooms) >= ROOM_TENANTS:
            self._rooms.clear()
        if room_s < math.inf:
            self._rooms[tenant] = now_ms, room_s
        return room_s

    async def sweep(self) -> list[SessionKey]:
        await self._forget_expired(MOST_TOLD)
        with self._guard:
            expired = self._sessions.expired
            told = expired[:MOST_TOLD]
            del expired[:MOST_TOLD]
        return told

    async def close(self) -> None:
        """The last process to close it leaves all of it on the disk."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._directory.close)
        if self._pool is not None:
            self._pool.shutdown()

    @staticmethod
    def check(path: Path, max_sessions: int, durability: Durability) -> None:
        """Open the store and let go of it, to find out whether it can be opened.

        Raises:
            SettingsError: it cannot.
        """
        is_power = durability == "power"
        directory = open_directory(path, max_sessions, NEVER_MS, is_power, this_machine())
        directory.close(sync_last=False)

    def _now_ms(self) -> int:
        return int(self._header[AT_OFFSET] + self._machine.since_boot() * 1000)

    # Whose turn it is ---------------------------------------------------------------------------

    async def _locked(self, what: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._pool is None:
            with await self._lock.turn():
                return what(*args, **kwargs)
        run = partial(self._wait_and_run, what, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, run)

    def _wait_and_run(self, what: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with self._lock.wait():
                return what(*args, **kwargs)
        except OSError as error:
            raise StoreUnavailableError(
                f"the disk did not take the sessions ({error}); look after it, and try again"
            ) from error

    # What is done in it -------------------------------------------------------------------------

    def _get(self, keys: Sequence[SessionKey]) -> list[Record | None]:
        with self._guard:
            sessions = self._sessions
            sessions.index.refresh()
            now_ms = self._now_ms()
            found = [sessions.find(key, now_ms) for key in keys]
        return [None if held is None else held.record for held in found]

    def _get_locked(self, keys: Sequence[SessionKey]) -> list[Record | None]:
        with self._guard:
            sessions = self._sessions
            sessions.index.refresh()
            now_ms = self._now_ms()
            found = [sessions.find_locked(key, now_ms) for key in keys]
        return [None if held is None else held.record for held in found]

    def _commit(self, commits: Sequence[Commit]) -> list[Outcome]:
        with self._guard:
            sessions = self._sessions
            sessions.index.refresh()
            now_ms = self._header[AT_SEEN] = self._now_ms()
            return [sessions.publish(sessions.prepare(commit, now_ms)) for commit in commits]

    def _commit_durably(self, commits: Sequence[Commit]) -> list[Outcome]:
        """The same, with one sync for all that is written, and for drops one before and after.

        Where a session's newest slot is freed, that its older ones were must be on the disk first:
        else a power cut could uncover one of them.
        """
        now_ms = self._header[AT_SEEN] = self._now_ms()
        is_drop = any(commit.after is None for commit in commits)
        if is_drop or now_ms >= self._header[AT_FIRST_DUE]:
            self._sessions.slots.sync()
        outcomes: list[Outcome] = []
        while len(outcomes) < len(commits):
            prepared = self._prepare_some(commits[len(outcomes) :], now_ms)
            if any(isinstance(one, Write) for one in prepared):
                self._sessions.slots.sync()
            with self._guard:
                outcomes += [self._sessions.publish(one) for one in prepared]
        if is_drop:
            self._sessions.slots.sync()
        return outcomes

    def _prepare_some(self, commits: Sequence[Commit], now_ms: int) -> list[Write | Outcome]:
        """All, or as many as there are free slots for on a full disk; at least one."""
        prepared: list[Write | Outcome] = []
        with self._guard:
            sessions = self._sessions
            sessions.index.refresh()
            for commit in commits:
                one = sessions.prepare(commit, now_ms)
                if one is Outcome.NO_SPACE and any(isinstance(each, Write) for each in prepared):
                    break  # publishing these frees slots
                prepared.append(one)
        return prepared

    async def _forget_expired(self, most: int | None) -> None:
        """Of the sessions whose time is up all, or until `most` wait to be told."""
        begun_ms = self._now_ms()
        if begun_ms < self._header[AT_FIRST_DUE]:
            return
        look = Look(begun_ms)
        while not await self._locked(self._expire_piece, look):
            if most is not None and len(self._sessions.expired) >= most:
                return
            await asyncio.sleep(0)

    def _expire_piece(self, look: Look) -> bool:
        """Whether it was the last."""
        if self._pool is not None:
            self._sessions.slots.sync()  # as before a drop
        with self._guard:
            self._sessions.index.refresh()
            self._sessions.expire_some(look, look.begun_ms)
            return self._sessions.is_over(look)

    async def _first_due_ms(self, tenant: str | None, now_ms: int) -> float:
        """When the first live session expires, inf if there is none; read without the lock."""
        number = None if tenant is None else self._sessions.tenants.find(tenant)
        if tenant is not None and number is None:
            return math.inf
        with self._guard:
            self._sessions.index.refresh()
            entries = self._sessions.index.entries
        least_ms = math.inf
        for start in range(0, len(entries), SCAN_ENTRIES):
            some = entries[start : start + SCAN_ENTRIES]
            due = some[some[:, WORD] > TOMB, DUE]
            if number is not None:
                due = due[due & np.uint64(TENANT_MASK) == number]
            due_ms = due >> np.uint64(TENANT_BITS)
            due_ms = due_ms[due_ms > now_ms]
            if len(due_ms):
                least_ms = min(least_ms, int(due_ms.min()))
            await asyncio.sleep(0)
        return least_ms
