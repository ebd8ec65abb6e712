"""Clients that hang up while they wait: what they asked for is not run.

Whether a client has left, a server says to who asks it, and that takes a task for each request that
waits; a timer for each takes 2 us. Most requests are answered within a millisecond. So one timer
looks at all of them: who was there at its last look already is watched from now on, at least
`LOOK_EVERY_S` and at most twice that after it came. While nobody waits there is no timer.
"""

import asyncio
from collections.abc import Callable

from service.protocols.asgi import Receive

LOOK_EVERY_S = 0.05


class Watch:
    """One client that waits."""

    __slots__ = ("_hung_up", "_receive", "_task")

    def __init__(self, receive: Receive, hung_up: Callable[[], object]) -> None:
        self._receive = receive
        self._hung_up = hung_up
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._wait())

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self._hung_up()


class Watches:
    """All clients of one app that wait."""

    def __init__(self) -> None:
        self._waiting: set[Watch] = set()
        self._seen: set[Watch] = set()  # at the last look
        self._is_looking = False

    def add(self, receive: Receive, hung_up: Callable[[], object]) -> Watch:
        """Call `hung_up` if this client leaves before it is removed.

        Args:
            receive: of its request, whose body was read.
        """
        watch = Watch(receive, hung_up)
        self._waiting.add(watch)
        if not self._is_looking:
            self._is_looking = True
            asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)
        return watch

    def remove(self, watch: Watch) -> None:
        """It waits no more."""
        self._waiting.discard(watch)
        watch.end()

    def _look(self) -> None:
        for watch in self._seen & self._waiting:
            watch.begin()
        self._seen = set(self._waiting)
        self._is_looking = bool(self._waiting)
        if self._is_looking:
            asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)
