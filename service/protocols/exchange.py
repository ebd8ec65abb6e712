"""The requests of one long-lived connection: many under way, each answered as soon as it is done.

Rules
- Requests of one session run, and are answered, in their order; sessions do not wait for each
  other.
- A request that is refused gets an error, and the connection goes on.
- At most `max_in_flight` requests are read and not yet written back: a client that reads slowly
  slows its own sending, and nobody else.
- When the client goes away, what has not started is not run. When the server drains, what was
  read is answered, and nothing more is read.

How it works: a reader, which knows the protocol, submits requests, each with a tag; the callback
of each answer puts what `write` makes of it into the outbox; `run`, in the connection's own task,
sends what is there.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Generic, TypeVar

from service.blocks import Block, Done
from service.engine import Engine
from service.errors import CarouselError, InternalError
from service.job import Answer, Job, Request
from service.logs import about

MAX_IN_FLIGHT = 256  # requests; as many rows as a batch takes, so one connection can fill it

logger = logging.getLogger("carousel.http")

Tag = TypeVar("Tag")  # what a protocol answers by: a line's number, a frame's request id
Out = TypeVar("Out")  # what it sends

WriteAnswer = Callable[[Tag, Answer], Out]
WriteError = Callable[[Tag, CarouselError, Request | None], Out]  # None: it could not be read


def refusal(error: CarouselError, request: Request | None, **place: object) -> dict[str, object]:
    """An error in the middle of a stream: what it says, where, and of which session and step."""
    body = {**error.body(), **place}
    if request is not None:
        body["session_id"] = request.key.session_id
        if request.step is not None:
            body["step"] = request.step
    return body


class Exchange(Generic[Tag, Out]):
    """What the reader and the writer of one connection share."""

    def __init__(
        self,
        engine: Engine,
        tenant: str,
        write_answer: WriteAnswer[Tag, Out],
        write_error: WriteError[Tag, Out],
        max_in_flight: int = MAX_IN_FLIGHT,
        *,
        protocol: str,
    ) -> None:
        """`protocol`: as the origin of its requests says; open ones are counted by it."""
        self._engine = engine
        self._tenant = tenant
        self._write_answer = write_answer
        self._write_error = write_error
        self._max_in_flight = max_in_flight
        self._max_block = min(max_in_flight, engine.max_block)
        self._protocol = protocol
        self._jobs: set[Job] = set()
        self._blocks: set[Block] = set()
        self._outbox: list[Out] = []
        self._in_flight = 0  # accepted or refused, and not yet written back
        self._answered = 0  # of them, those that the outbox answers
        self._room = asyncio.Event()
        self._wake_writer = asyncio.Event()

    # For the reader -----------------------------------------------------------------------------

    async def submit(self, tag: Tag, read: Callable[[], Request]) -> None:
        """Wait for room, read one request, and hand it to the engine; its answer is sent later."""
        await self._wait_for_room()
        request: Request | None = None
        try:
            request = read()
            job = await self._engine.submit(request)
        except CarouselError as error:
            self.refuse(tag, error, request)
            return
        self._in_flight += 1
        self._watch(job, tag)

    async def submit_together(
        self,
        tag: Tag,
        submit: Callable[[], Awaitable[Sequence[Job]]],
        write: Callable[[Sequence[Answer]], Out],
    ) -> None:
        """The same of what becomes several requests: they get one answer, or one error."""
        await self._wait_for_room()
        try:
            jobs = await submit()
        except CarouselError as error:
            self.refuse(tag, error)
            return
        self._in_flight += 1
        self._jobs.update(jobs)
        whole = asyncio.gather(*(job.future for job in jobs))
        whole.add_done_callback(lambda _: self._finish_together(jobs, whole, tag, write))

    @property
    def max_block(self) -> int:
        """How many requests a block may have."""
        return self._max_block

    async def submit_block(
        self,
        block: Block,
        write: Callable[[Block, Done], Out],
        tag_of: Callable[[int], Tag],
    ) -> None:
        """Wait for room, and hand a block to the engine; what answers it is sent later.

        Args:
            write: makes one of all rows that ran as a block; any number of them.
            tag_of: of a row that goes on by itself, as if it had been submitted.
        Raises:
            DrainingError: nothing of it is run.
        """
        while self._in_flight and self._in_flight + len(block) > self._max_in_flight:
            self._room.clear()
            await self._room.wait()
        await self._engine.wait_for_room(self._tenant, len(block))
        block.receiver = _Rows(self, write, tag_of)
        self._engine.offer(block)
        self._in_flight += len(block)
        self._blocks.add(block)

    def refuse(self, tag: Tag, error: CarouselError, request: Request | None = None) -> None:
        """Answer one request, which is not run, with an error."""
        self._in_flight += 1
        self._put_error(tag, error, request)

    def put(self, out: Out) -> None:
        """Send something that answers no request."""
        self._in_flight += 1
        self._put(out)

    # For the connection's task ------------------------------------------------------------------

    async def run(
        self,
        reading: Coroutine[None, None, None],
        send: Callable[[list[Out]], Awaitable[None]],
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> bool:
        """Read and answer until the client has ended, and all that was read is answered.

        Args:
            reading: reads requests and submits them; ends when the client has sent all.
            send: sends what is ready now, one or more.
            begin: called once, after `reading` has begun and before anything is sent.
        Returns:
            False if the server's drain ended the reading, not the client.
        Raises:
            What `reading`, `begin` or `send` raised; then nobody waits for the answers.
        """
        reader = asyncio.create_task(reading)
        forget = self._engine.on_drain(reader.cancel)
        reader.add_done_callback(lambda _: self._wake_writer.set())
        self._engine.metrics.stream_opened(self._protocol)
        try:
            # The reader's first receive asks a waiting client (Expect: 100-continue) for its body;
            # once the response has started it would be too late.
            await asyncio.sleep(0)
            if begin is not None:
                await begin()
            while not (reader.done() and self._in_flight == 0):
                await self._wake_writer.wait()
                self._wake_writer.clear()
                if reader.done() and not reader.cancelled():
                    reader.result()  # raises what ended it: ClientGone
                if self._outbox:
                    outs, self._outbox = self._outbox, []
                    answered, self._answered = self._answered, 0
                    await send(outs)
                    self._in_flight -= answered
                    self._room.set()
            if reader.cancelled():
                return False
            reader.result()
            return True
        finally:
            self._engine.metrics.stream_closed(self._protocol)
            forget()
            reader.cancel()
            for job in list(self._jobs):
                self._engine.abandon(job)
            for block in self._blocks:
                block.is_abandoned = True

    # The rest -----------------------------------------------------------------------------------

    async def _wait_for_room(self) -> None:
        while self._in_flight >= self._max_in_flight:
            self._room.clear()
            await self._room.wait()
        await self._engine.wait_for_room(self._tenant)

    def _watch(self, job: Job, tag: Tag) -> None:
        self._jobs.add(job)
        job.future.add_done_callback(lambda _: self._finish(job, tag))

    def _finish(self, job: Job, tag: Tag) -> None:
        self._jobs.discard(job)
        if job.future.cancelled():
            return
        self._put_result(tag, job, lambda: self._write_answer(tag, job.future.result()))

    def _finish_together(
        self,
        jobs: Sequence[Job],
        whole: "asyncio.Future[list[Answer]]",
        tag: Tag,
        write: Callable[[Sequence[Answer]], Out],
    ) -> None:
        self._jobs.difference_update(jobs)
        if any(job.future.cancelled() for job in jobs):
            whole.exception()  # which asyncio would log as never asked for
            return
        self._put_result(tag, jobs[0], lambda: write(whole.result()))
        for job in jobs:
            if not job.future.done():  # one of the others was refused
                self._engine.abandon(job)

    def _put_result(self, tag: Tag, job: Job, result: Callable[[], Out]) -> None:
        try:
            out = result()
        except CarouselError as error:
            self._put_error(tag, error, job.request)
        except Exception:
            logger.exception("the answer to request %s could not be written", tag, extra=_of(job))
            self._put_error(tag, InternalError("the server failed"), job.request)
        else:
            self._put(out)

    def _put_error(self, tag: Tag, error: CarouselError, request: Request | None) -> None:
        self._engine.metrics.refused(error)
        self._put(self._write_error(tag, error, request))

    def _put(self, out: Out, answers: int = 1) -> None:
        self._outbox.append(out)
        self._answered += answers
        self._wake_writer.set()


class _Rows(Generic[Tag, Out]):
    """What becomes of a block, told to its exchange."""

    def __init__(
        self,
        exchange: Exchange[Tag, Out],
        write: Callable[[Block, Done], Out],
        tag_of: Callable[[int], Tag],
    ) -> None:
        self._exchange = exchange
        self._write = write
        self._tag_of = tag_of

    def done(self, block: Block, done: Done) -> None:
        try:
            out = self._write(block, done)
        except Exception:
            logger.exception("the answers to a block could not be written")
            for row in done.rows.tolist():
                self.refused(block, row, InternalError("the server failed"))
        else:
            self._exchange._put(out, len(done.rows))

    def left(self, block: Block, row: int, job: Job) -> None:
        self._exchange._watch(job, self._tag_of(row))

    def refused(self, block: Block, row: int, error: CarouselError) -> None:
        self._exchange._put_error(self._tag_of(row), error, block.request(row))

    def over(self, block: Block) -> None:
        self._exchange._blocks.discard(block)


def _of(job: Job) -> dict[str, dict[str, object]]:
    request_id, session_id = job.request.origin.request_id, job.key.session_id
    return about(request_id=request_id, session_id=session_id, model=job.model.reference)
