"""POST /stream: /predict bodies as lines in, their replies as lines out, full duplex.

Rules
- A reply line leaves as soon as its step is done, while the request body is still coming.
- Lines of one session run, and are answered, in their order; sessions do not wait for each other.
- A line that is refused gets an error line with its number (from 1); the stream goes on.
- Blank lines are ignored; the last line needs no newline. A line over the limit is refused
  without being kept.
- What came in one read of the socket is read, and asked for its key, as one; see `gathering`.
- Where a compressed body is damaged, what was read is answered, then an error line says why.
- When the server drains, what was read is answered, then an error line says that the stream ends.
- Who waits for whom is `Exchange`'s affair, as under every protocol that streams.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress

from service.blocks import Block, Done
from service.engine import Engine
from service.errors import (
    CarouselError,
    DrainingError,
    ForbiddenError,
    TooLongError,
    UnauthorizedError,
)
from service.job import Answer, Request
from service.key_ring import Caller
from service.origin import Origin
from service.protocols.asgi import ClientGone, Receive, Send
from service.protocols.exchange import Exchange, refusal
from service.protocols.gathering import LEAST_ROWS, Arrival, hand_over
from service.protocols.lines import Names, read_bodies, seat_bodies, write_bodies
from service.protocols.seating import NO_SEAT, Seating
from service.wire import Array, Envelope, encode, read_envelope

NDJSON = b"application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of the request body that came together, without the blank ones."""

    numbers: Sequence[int]  # from 1
    texts: Sequence[bytes | None]  # None: too long to keep


async def split_lines(receive: Receive, max_line_bytes: int) -> AsyncIterator[Lines]:
    """The lines of a body as they come; ClientGone if the client leaves."""
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
        if whole:
            is_short = not overflowing and len(pending) + len(whole[0]) <= max_line_bytes
            if pending:
                whole[0] = bytes(pending + whole[0])
            texts = [text.strip() if len(text) <= max_line_bytes else None for text in whole]
            texts[0] = texts[0] if is_short else None
            pending.clear()
            overflowing = False
            lines = _not_blank(number + 1, texts)
            number += len(whole)
            if lines.numbers:
                yield lines
        overflowing = overflowing or len(pending) + len(rest) > max_line_bytes
        if overflowing:
            pending.clear()
        else:
            pending += rest
    last = _not_blank(number + 1, [None if overflowing else bytes(pending).strip()])
    if last.numbers:
        yield last


def _not_blank(first: int, texts: Sequence[bytes | None]) -> Lines:
    numbers = range(first, first + len(texts))
    if all(texts):
        return Lines(numbers, texts)
    kept = [text != b"" for text in texts]
    return Lines(list(compress(numbers, kept)), list(compress(texts, kept)))


@dataclass(frozen=True, slots=True)
class Bodies:
    """What the native routes make of bodies, and who is asked for the key of each."""

    admit: Callable[[], Caller]
    read: Callable[[bytes, Caller], Request]
    request_of: Callable[[Envelope, Caller], Request]
    write_answer: Callable[[Answer], bytes]


async def serve_stream(
    engine: Engine,
    receive: Receive,
    send: Send,
    bodies: Bodies,
    max_line_bytes: int,
    tenant: str,
    origin: Origin,
) -> None:
    """Answer one POST /stream; ClientGone if the client leaves before the end.

    Raises:
        DrainingError: the server is shutting down already; nothing was read.
    """
    engine.refuse_if_draining()
    exchange: Exchange[int, bytes] = Exchange(
        engine,
        tenant,
        lambda _, answer: bodies.write_answer(answer) + b"\n",
        _error_line,
        protocol="stream",
    )
    reader = _Reader(engine, exchange, bodies, max_line_bytes, tenant, origin)
    last: CarouselError | None = None  # why nothing more is read, and the last line

    async def read() -> None:
        nonlocal last
        try:
            async for lines in split_lines(receive, max_line_bytes):
                await reader.submit(lines)
        except CarouselError as error:  # the body is not what its coding says it is
            last = error

    async def begin() -> None:
        headers = [(b"content-type", NDJSON), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send_lines(lines: list[bytes]) -> None:
        await send({"type": "http.response.body", "body": b"".join(lines), "more_body": True})

    if not await exchange.run(read(), send_lines, begin):
        last = DrainingError(
            "the server is shutting down; this line and those after it were not run, "
            "send them to another, or try again"
        )
    farewell = b""
    if last is not None:
        engine.metrics.refused(last)
        farewell = _error_line(reader.lines_done + 1, last)
    await send({"type": "http.response.body", "body": farewell, "more_body": False})


class _Reader:
    """Submits the lines of one body."""

    def __init__(
        self,
        engine: Engine,
        exchange: Exchange[int, bytes],
        bodies: Bodies,
        max_line_bytes: int,
        tenant: str,
        origin: Origin,
    ) -> None:
        self.lines_done = 0  # submitted
        self._exchange = exchange
        self._bodies = bodies
        self._max_line_bytes = max_line_bytes
        self._tenant = tenant
        self._origin = origin
        self._names = Names(Seating(engine), tenant)

    async def submit(self, lines: Lines) -> None:
        """All of them, in their order."""
        arrival = self._arrival(lines) if len(lines.texts) >= LEAST_ROWS else None
        if arrival is not None:
            await hand_over(self._exchange, self._tenant, arrival, lambda n: self._note(lines, n))
        else:
            for row, number in enumerate(lines.numbers):
                await self._exchange.submit(number, partial(self._read, lines.texts[row]))
                self.lines_done = number
        self._note(lines, len(lines.numbers))

    def _note(self, lines: Lines, count: int) -> None:
        if count:
            self.lines_done = lines.numbers[count - 1]

    def _read(self, text: bytes | None) -> Request:
        if text is None:
            raise TooLongError(
                f"the line has more than {self._max_line_bytes} bytes, which is what the server "
                "takes; send it in several",
                expected=self._max_line_bytes,
            )
        # Asked for each line: a key that is revoked or expires ends here, not with the stream.
        return self._bodies.read(text, self._bodies.admit())

    def _arrival(self, lines: Lines) -> Arrival[int, bytes] | None:
        """Lines that came together; None where each must be told who may not ask."""
        try:
            caller = self._bodies.admit()
        except (UnauthorizedError, ForbiddenError):
            return None
        if caller.tenant != self._tenant:
            return None
        texts, names = lines.texts, self._names
        read = read_bodies(texts, read_envelope)
        seats, steps, bundles = seat_bodies(read, names)

        def request(row: int) -> Request:
            if seats[row] == NO_SEAT:
                return self._read(texts[row])
            return self._bodies.request_of(read[row], caller)

        def write(rows: Array, block: Block, done: Done) -> bytes:
            replies = write_bodies([read[row] for row in rows.tolist()], names, block, done)
            return b"\n".join([*replies, b""])

        return Arrival(
            seats,
            steps,
            bundles,
            names.generation,
            self._origin,
            tag=lines.numbers.__getitem__,
            read=request,
            left=lambda row: names.forget(read[row].session_id),
            write=write,
        )


def _error_line(number: int, error: CarouselError, request: Request | None = None) -> bytes:
    return encode(refusal(error, request, line=number)) + b"\n"
