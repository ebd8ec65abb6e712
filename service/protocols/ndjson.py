"""POST /stream: /predict bodies as lines in, their replies as lines out, full duplex.

Rules
- A reply line leaves as soon as its step is done, while the request body is still coming.
- Lines of one session run, and are answered, in their order; sessions do not wait for each other.
- A line that is refused gets an error line with its number (from 1); the stream goes on.
- Blank lines are ignored; the last line needs no newline. A line over the limit is refused
  without being kept.
- At most `MAX_IN_FLIGHT` lines are read and not yet written back: a client that reads slowly
  slows its own sending, and nobody else.
- When the client goes away, what has not started is not run. When the server drains, what was
  read is answered, then an error line says that the stream ends.

How it works: a reader task splits the body into lines and submits them; each answer's callback
puts a line into the outbox; the writer, which is the request's own task, sends what is there.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from service.engine import Engine
from service.errors import (
    CarouselError,
    DrainingError,
    InternalError,
    TooLongError,
)
from service.job import Answer, Job, Request
from service.protocols.asgi import ClientGone, Receive, Send
from service.wire import encode

MAX_IN_FLIGHT = 256  # lines; as many rows as a batch takes, so one stream can fill it
NDJSON = b"application/x-ndjson"

logger = logging.getLogger("carousel.http")

ReadRequest = Callable[[bytes], Request]
WriteAnswer = Callable[[Answer], bytes]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the request body; `text` is None if it was too long to keep."""

    number: int  # from 1
    text: bytes | None


async def split_lines(receive: Receive, max_line_bytes: int) -> AsyncIterator[Line]:
    """The non-blank lines of a body as they come; ClientGone if the client leaves."""
    number = 0
    pending = bytearray()
    overflowing = False
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        more = message.get("more_body", False)
        *whole, rest = message.get("body", b"").split(b"\n")
        for part in whole:
            number += 1
            too_long = overflowing or len(pending) + len(part) > max_line_bytes
            text = bytes(pending + part).strip()
            pending.clear()
            overflowing = False
            if too_long or text:
                yield Line(number, None if too_long else text)
        overflowing = overflowing or len(pending) + len(rest) > max_line_bytes
        if overflowing:
            pending.clear()
        else:
            pending += rest
    if overflowing or pending.strip():
        yield Line(number + 1, None if overflowing else bytes(pending).strip())


async def serve_stream(
    engine: Engine,
    receive: Receive,
    send: Send,
    read_request: ReadRequest,
    write_answer: WriteAnswer,
    max_line_bytes: int,
    tenant: str,
) -> None:
    """Answer one POST /stream; ClientGone if the client leaves before the end.

    Raises:
        DrainingError: the server is shutting down already; nothing was read.
    """
    engine.refuse_if_draining()
    stream = _Stream(engine, read_request, write_answer, tenant)
    reader = asyncio.create_task(stream.read(split_lines(receive, max_line_bytes), max_line_bytes))
    forget = engine.on_drain(reader.cancel)
    reader.add_done_callback(lambda _: stream.wake_writer.set())
    try:
        # The reader's first receive asks a waiting client (Expect: 100-continue) for its body;
        # once the response has started it would be too late.
        await asyncio.sleep(0)
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", NDJSON), (b"cache-control", b"no-store")],
            }
        )
        await stream.write(send, reader)
    finally:
        forget()
        reader.cancel()
        stream.abandon()


class _Stream:
    """What the reader and the writer of one request share."""

    def __init__(
        self, engine: Engine, read_request: ReadRequest, write_answer: WriteAnswer, tenant: str
    ) -> None:
        self._engine = engine
        self._read_request = read_request
        self._write_answer = write_answer
        self._tenant = tenant
        self._jobs: set[Job] = set()
        self._outbox: list[bytes] = []
        self._in_flight = 0  # lines accepted or refused, and not yet written back
        self._lines_done = 0
        self._farewell = b""  # why the stream ends before the client ended it
        self._room = asyncio.Event()
        self.wake_writer = asyncio.Event()

    async def read(self, lines: AsyncIterator[Line], max_line_bytes: int) -> None:
        """Submit every line; ClientGone if the client leaves."""
        try:
            async for line in lines:
                await self._wait_for_room()
                await self._accept(line, max_line_bytes)
                self._lines_done = line.number
        except asyncio.CancelledError:
            if not self._engine.is_draining:
                raise
            refusal = DrainingError(
                "the server is shutting down; this line and those after it were not run, "
                "send them to another, or try again"
            )
            self._engine.metrics.refused(refusal)
            self._farewell = _error_line(refusal, self._lines_done + 1, None)

    async def write(self, send: Send, reader: "asyncio.Task[None]") -> None:
        """Send what is in the outbox until the reader is done and every line is answered."""
        while not (reader.done() and self._in_flight == 0):
            await self.wake_writer.wait()
            self.wake_writer.clear()
            if reader.done():
                reader.result()  # raises what ended it: ClientGone
            if self._outbox:
                lines, self._outbox = self._outbox, []
                body = b"".join(lines)
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self._in_flight -= len(lines)
                self._room.set()
        reader.result()
        await send({"type": "http.response.body", "body": self._farewell, "more_body": False})

    def abandon(self) -> None:
        """Nobody reads the answers any more."""
        for job in list(self._jobs):
            self._engine.abandon(job)

    async def _wait_for_room(self) -> None:
        while self._in_flight >= MAX_IN_FLIGHT:
            self._room.clear()
            await self._room.wait()
        await self._engine.wait_for_room(self._tenant)

    async def _accept(self, line: Line, max_line_bytes: int) -> None:
        request: Request | None = None
        try:
            if line.text is None:
                raise TooLongError(
                    f"the line has more than {max_line_bytes} bytes, which is what the server "
                    "takes; send it in several",
                    expected=max_line_bytes,
                )
            request = self._read_request(line.text)
            job = await self._engine.submit(request)
        except CarouselError as error:
            self._refuse(error, line.number, request)
            return
        self._in_flight += 1
        self._jobs.add(job)
        job.future.add_done_callback(lambda _: self._finish(job, line.number))

    def _refuse(self, error: CarouselError, number: int, request: Request | None = None) -> None:
        self._in_flight += 1
        self._put_error(error, number, request)

    def _finish(self, job: Job, number: int) -> None:
        self._jobs.discard(job)
        if job.future.cancelled():
            return
        try:
            line = self._write_answer(job.future.result()) + b"\n"
        except CarouselError as error:
            self._put_error(error, number, job.request)
        except Exception:
            logger.exception("the answer to line %d could not be written", number)
            self._put_error(InternalError("the server failed"), number, job.request)
        else:
            self._put(line)

    def _put_error(self, error: CarouselError, number: int, request: Request | None) -> None:
        self._engine.metrics.refused(error)
        self._put(_error_line(error, number, request))

    def _put(self, line: bytes) -> None:
        self._outbox.append(line)
        self.wake_writer.set()


def _error_line(error: CarouselError, number: int, request: Request | None) -> bytes:
    body = {**error.body(), "line": number}
    if request is not None:
        body["session_id"] = request.key.session_id
        if request.step is not None:
            body["step"] = request.step
    return encode(body) + b"\n"
