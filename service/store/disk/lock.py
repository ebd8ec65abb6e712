"""One writer at a time, of all processes; the kernel takes the lock back from the dead."""

import asyncio
import fcntl
import time
from collections.abc import Callable
from types import TracebackType

from service.errors import StoreUnavailableError
from service.store.disk.layout import AT_DIRTY

TIMEOUT_S = 10.0  # a writer holds it for a millisecond, or for as long as the disk takes to sync
_TURNS = 8  # of the loop, before it sleeps: the other will be done by then
_PAUSE_S = 0.0005


class Lock:
    """`with lock.wait():` or `with await lock.turn():` around all that writes."""

    def __init__(
        self,
        fd: int,
        header: memoryview,
        repair: Callable[[], object],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._fd = fd
        self._header = header
        self._repair = repair
        self._timeout_s = timeout_s

    async def turn(self) -> "Lock":
        """Have the lock, without blocking the loop meanwhile.

        Raises:
            StoreUnavailableError: others held it for too long.
        """
        if self._try():
            return self
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            if self._try():
                return self
        deadline_s = time.monotonic() + self._timeout_s
        while not self._try():
            self._check(deadline_s)
            await asyncio.sleep(_PAUSE_S)
        return self

    def wait(self) -> "Lock":
        """The same in a thread of its own."""
        deadline_s = time.monotonic() + self._timeout_s
        while not self._try():
            self._check(deadline_s)
            time.sleep(_PAUSE_S)
        return self

    def __enter__(self) -> None:
        """It is held already."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._header[AT_DIRTY] = 0  # else the next one counts again
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            if self._header[AT_DIRTY]:
                self._repair()
            self._header[AT_DIRTY] = 1
        except BaseException:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            raise
        return True

    def _check(self, deadline_s: float) -> None:
        if time.monotonic() > deadline_s:
            raise StoreUnavailableError(
                f"the sessions on disk were locked for {self._timeout_s:g} s by another process; "
                "try again"
            )
