"""A client of the checks: the load generator's links, one awaited step at a time."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.wire.link import LinkError, Reply, Row
from benchmarks.wire.links import kind_of
from benchmarks.wire.servers import START_TIMEOUT_S, Server, ServerError

STEP_TIMEOUT_S = 30.0


class Client:
    """One connection and its sessions, by their names."""

    def __init__(
        self, link: str, path: str, port: int, names: Sequence[str], *, begun: bool = False
    ) -> None:
        """
        Args:
            names: one session, unless the kind of link takes many.
            begun: by another connection: they go on.
        """
        self._port = port
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._seen = set(range(len(names))) if begun else set()
        self._names = list(names)
        self._link = kind_of(link)(path, self._names, self._answered)

    async def __aenter__(self) -> "Client":
        await self._link.connect(self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close()

    async def step(self, name: str, x: Row, step: int | None = None) -> list[float]:
        """The row of y; LinkError if the server refuses, goes away or hangs."""
        future = self.send(name, x, step)
        either: list[asyncio.Future[Any]] = [future, self._link.trouble]
        done, _ = await asyncio.wait(
            either, timeout=STEP_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        if future in done:
            return self._link.read_y(future.result())
        reason = self._link.trouble.result() if done else f"no answer within {STEP_TIMEOUT_S:.0f} s"
        raise LinkError(reason)

    def send(self, name: str, x: Row, step: int | None = None) -> "asyncio.Future[Reply]":
        """Ask, and do not wait: the future gets the reply."""
        place = self._names.index(name)
        question = self._link.question(place, x, is_first=place not in self._seen, step=step)
        self._seen.add(place)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[place] = future
        self._link.ask(place, question)
        self._link.flush()
        return future

    def _answered(self, place: int, reply: Reply) -> None:
        if not (future := self._waiting.pop(place)).done():
            future.set_result(reply)


async def wait_until_it_answers(server: Server, link: str, path: str, width: int) -> None:
    """Return once it has answered a step of a session that nobody else uses; else ServerError."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            async with Client(link, path, server.port, ["is-it-up"]) as client:
                await asyncio.wait_for(client.step("is-it-up", [0.0] * width), 10)
            return
        except (LinkError, OSError, TimeoutError) as error:
            if not server.is_alive() or time.monotonic() > deadline:
                raise ServerError(f"it did not start: {error}\n{server.tail()}") from None
            await asyncio.sleep(0.2)
