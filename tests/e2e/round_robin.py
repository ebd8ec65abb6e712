"""The plainest load balancer: every connection goes to the next server, and sticks to nothing."""

import asyncio
import itertools
import threading
from collections.abc import Sequence
from contextlib import suppress


class RoundRobin:
    """Runs in a thread of its own; a server that does not answer is passed over."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._next = itertools.cycle(ports)
        self._servers = len(ports)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._listener: asyncio.Server
        self._serving: set[asyncio.Task[object]] = set()
        self.port = 0
        self.taken = dict.fromkeys(ports, 0)  # connections by server

    def __enter__(self) -> "RoundRobin":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._listener.close()
        while self._serving:
            for task in self._serving:
                task.cancel()
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            for port in itertools.islice(self._next, self._servers):
                with suppress(OSError):
                    near, far = await asyncio.open_connection("127.0.0.1", port)
                    break
            else:
                return
            self.taken[port] += 1
            pumps = [
                asyncio.create_task(_pump(reader, far)),
                asyncio.create_task(_pump(near, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                far.close()
        finally:
            writer.close()
            self._serving.discard(task)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
