"""A TCP proxy that cuts each connection after a random number of bytes, in whichever direction."""

import asyncio
import random
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from tests.e2e.conftest import free_port


class CuttingProxy:
    """Runs in a thread of its own, so that blocking clients can be cut too."""

    def __init__(self, target: int, most_bytes: int, seed: int = 1) -> None:
        """
        Args:
            target: the port behind it, of this machine.
            most_bytes: that a connection carries before it is reset.
        """
        self.port = free_port()
        self.cuts = 0
        self._target = target
        self._most_bytes = most_bytes
        self._rng = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "CuttingProxy":
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        ends = [writer]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(back)
            left = [self._rng.randrange(1, self._most_bytes)]
            pumps = [
                asyncio.create_task(self._pump(*pair, left))
                for pair in ((reader, back), (there, writer))
            ]
            _, others = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for other in others:
                other.cancel()
            self.cuts += left[0] <= 0
        except (OSError, asyncio.CancelledError):
            return
        finally:
            for end in ends:
                end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]
    ) -> None:
        """Carry bytes until there are none left of the connection's."""
        with suppress(OSError):
            while left[0] > 0 and (data := await reader.read(1 << 14)):
                part = data[: left[0]]
                left[0] -= len(data)
                writer.write(part)
                await writer.drain()
