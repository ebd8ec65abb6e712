"""POST /stream: /predict bodies as lines in, their replies as lines out, full duplex.

Rules
- A reply line leaves as soon as its step is done, while the request body is still coming.
- Lines of one session run, and are answered, in their order; sessions do not wait for each other.
- A line that is refused gets an error line with its number (from 1); the stream goes on.
- Blank lines are ignored; the last line needs no newline. A line over the limit is refused
  without being kept.
- Where a compressed body is damaged, what was read is answered, then an error line says why.
- When the server drains, what was read is answered, then an error line says that the stream ends.
- Who waits for whom is `Exchange`'s affair, as under every protocol that streams.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

from service.engine import Engine
from service.errors import CarouselError, DrainingError, TooLongError
from service.job import Answer, Request
from service.protocols.asgi import ClientGone, Receive, Send
from service.protocols.exchange import Exchange, refusal
from service.wire import encode

NDJSON = b"application/x-ndjson"


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
    read_request: Callable[[bytes], Request],
    write_answer: Callable[[Answer], bytes],
    max_line_bytes: int,
    tenant: str,
) -> None:
    """Answer one POST /stream; ClientGone if the client leaves before the end.

    Raises:
        DrainingError: the server is shutting down already; nothing was read.
    """
    engine.refuse_if_draining()
    exchange: Exchange[int, bytes] = Exchange(
        engine,
        tenant,
        lambda _, answer: write_answer(answer) + b"\n",
        _error_line,
        protocol="stream",
    )
    lines_done = 0

    last: CarouselError | None = None  # why nothing more is read, and the last line

    async def read() -> None:
        nonlocal lines_done, last
        try:
            async for line in split_lines(receive, max_line_bytes):
                await exchange.submit(line.number, partial(_read_line, line))
                lines_done = line.number
        except CarouselError as error:  # the body is not what its coding says it is
            last = error

    def _read_line(line: Line) -> Request:
        if line.text is None:
            raise TooLongError(
                f"the line has more than {max_line_bytes} bytes, which is what the server takes; "
                "send it in several",
                expected=max_line_bytes,
            )
        return read_request(line.text)

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
        farewell = _error_line(lines_done + 1, last)
    await send({"type": "http.response.body", "body": farewell, "more_body": False})


def _error_line(number: int, error: CarouselError, request: Request | None = None) -> bytes:
    return encode(refusal(error, request, line=number)) + b"\n"
