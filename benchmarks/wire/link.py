"""One connection to a server: how a step is asked and answered.

Rules
- The same code asks every contestant: bytes are made before the clock runs (`question`), replies
  are cut out of the stream and handed on whole (`answered`), and are parsed only where y is wanted
  (`read_y`). No numpy here: the load generator starts in a moment.
- A link that is not `shared` has one session and one question under way; on a shared one are many,
  and what is asked while a reply is handled leaves together at its end.
- Whatever is not the expected reply ends the link: `trouble` says why, with the reply.
"""

import asyncio
import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

HOST = "127.0.0.1"
OPEN_TIMEOUT_S = 30.0

Question = Any  # of its kind of link alone: bytes, or what a client of another package takes
Reply = Any  # the same
Answered = Callable[[int, Reply], None]
Row = Sequence[float]


class LinkError(Exception):
    """A server did not answer as it should; the message has what it said."""


class Link(asyncio.Protocol):
    """A connection that carries some of the sessions `names`, by their places in it."""

    shared = False

    def __init__(self, path: str, names: Sequence[str], answered: Answered) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.trouble: asyncio.Future[str] = loop.create_future()
        self.names = names
        self.answered = answered
        self.path = path
        self.transport: asyncio.Transport

    async def connect(self, port: int) -> None:
        """Open it; LinkError or OSError if the server does not."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, HOST, port)
        await asyncio.wait_for(self.opened, OPEN_TIMEOUT_S)

    @abstractmethod
    def question(
        self, session: int, x: Row, *, is_first: bool, step: int | None = None
    ) -> Question:
        """What asks for one step; `step`, its index, where a retry is to be safe."""

    @abstractmethod
    def ask(self, session: int, question: Question) -> None:
        """Send it, or keep it until `flush`."""

    def flush(self) -> None:
        """Send what was kept."""

    def read_y(self, reply: Reply) -> list[float]:
        """The row of y in a reply."""
        row: list[float] = json.loads(reply)["y"][0]
        return row

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.greet()

    def greet(self) -> None:
        """What is said before the first question."""
        self._open()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"the connection was closed: {exc}" if exc else "the connection was closed")

    def fail(self, reason: str) -> None:
        for future in (self.trouble, self.opened):
            if not future.done():
                if future is self.opened:
                    future.set_exception(LinkError(reason))
                    future.exception()  # looked at: nobody may be waiting
                else:
                    self.trouble.set_result(reason)

    async def close(self) -> None:
        self.transport.abort()

    def _open(self) -> None:
        if not self.opened.done():
            self.opened.set_result(None)


def predict_body(name: str, x: Row, step: int | None) -> dict[str, object]:
    body: dict[str, object] = {"session_id": name, "x": [list(x)]}
    return body if step is None else {**body, "step": step}


def session_of(reply: bytes) -> bytes:
    """The name in a reply that begins {"session_id":"NAME", .."""
    start = reply.index(b'"session_id":"') + 14
    return reply[start : reply.index(b'"', start)]
