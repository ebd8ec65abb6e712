"""Compressed bodies: requests may be gzip or deflate, whole replies of some size become gzip.

Rules
- A request's body is read piece by piece as it comes, so a compressed /stream stays a stream. The
  limits of a body and of a line count what comes out. Beyond `max_body_bytes` (of a stream, which
  has no end) what comes out may be MAX_RATIO times what went in: a bomb is cut off, and what it has
  cost by then is one such body.
- What ends in the middle, or is followed by something else, is refused; several members in a row
  are one body (RFC 1952, 2.2). `deflate` is zlib's format (RFC 9110, 8.4.1.2).
- Only whole JSON replies of MIN_BYTES or more are compressed, for who accepts gzip. Streams are
  not: each line would have to be flushed for itself, which takes 5 us and more of a core and makes
  a line of 124 bytes no smaller.
"""

import asyncio
import zlib
from functools import lru_cache

from service.errors import BadEncodingError, TooLongError, UnsupportedEncodingError
from service.protocols.asgi import JSON, Headers, Message, Receive, Scope

# Ten segments, which TCP sends before it hears of the first (RFC 6928): below that a smaller reply
# arrives no earlier.
MIN_BYTES = 16_384
# Of numbers: 48 % of the size, 9 us a kB. Level 3: 47 %, 24 us; level 6: 45 %, 53 us.
LEVEL = 1
IN_A_THREAD_BYTES = 131_072  # from here on it would keep the loop for more than a millisecond
MAX_RATIO = 100  # JSON is seldom beyond 20; zlib can do 1000
PIECE_BYTES = 65_536  # what is read out at a time, and then others get their turn
CODINGS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}  # -> zlib's wbits
ACCEPTED = b"gzip, deflate"


def decoded(scope: Scope, receive: Receive, max_body_bytes: int) -> Receive:
    """A `receive` that gives the body without its content coding.

    What it returns raises BadEncodingError or TooLongError, where the body is damaged or a bomb.

    Raises:
        UnsupportedEncodingError: the coding is none of ours; nothing was read.
    """
    for name, value in scope["headers"]:
        if name == b"content-encoding":
            coding = value.strip().lower()
            break
    else:
        return receive
    if coding in (b"", b"identity"):
        return receive
    if coding not in CODINGS:
        raise UnsupportedEncodingError(
            f"the body's Content-Encoding is {value.decode('latin-1')!r}, expected gzip, deflate, "
            "or none",
            got=value.decode("latin-1"),
            expected=["gzip", "deflate"],
        )
    return _Inflating(receive, coding, max_body_bytes).receive


class _Inflating:
    """The body of one request, coming out."""

    def __init__(self, receive: Receive, coding: bytes, max_body_bytes: int) -> None:
        self._receive = receive
        self._coding = coding
        self._max_body_bytes = max_body_bytes
        self._decoder: zlib._Decompress | None = None  # None: nothing has come
        self._rest = b""  # of what came, not read yet
        self._has_output = False  # the last piece was full: there may be more without input
        self._more = True  # the client has not sent all
        self._in_bytes = self._out_bytes = 0

    async def receive(self) -> Message:
        while True:
            if self._rest or self._has_output:
                await asyncio.sleep(0)
            elif not self._more:
                return await self._receive()  # what comes after the body: the client leaves
            else:
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                self._rest = message.get("body", b"")
                self._more = message.get("more_body", False)
                self._in_bytes += len(self._rest)
            piece = self._read_piece()
            ended = not (self._more or self._rest or self._has_output)
            if ended and self._decoder is not None and not self._decoder.eof:
                raise self._damaged("it ends in the middle")
            if piece or ended:
                return {"type": "http.request", "body": piece, "more_body": not ended}

    def _read_piece(self) -> bytes:
        if not (self._rest or self._has_output):
            return b""
        if self._decoder is None or self._decoder.eof:
            self._decoder = zlib.decompressobj(CODINGS[self._coding])
        try:
            piece = self._decoder.decompress(self._rest, PIECE_BYTES)
        except zlib.error as error:
            raise self._damaged(str(error)) from None
        self._rest = self._decoder.unused_data or self._decoder.unconsumed_tail
        self._has_output = len(piece) == PIECE_BYTES and not self._decoder.eof
        self._out_bytes += len(piece)
        if self._out_bytes > max(self._max_body_bytes, MAX_RATIO * self._in_bytes):
            raise TooLongError(
                f"{self._in_bytes} compressed bytes became {self._out_bytes} or more, the server "
                f"takes {self._max_body_bytes}, and of a stream {MAX_RATIO} times what was sent; "
                "send it uncompressed",
                got=self._out_bytes,
                expected=self._max_body_bytes,
            )
        return piece

    def _damaged(self, why: str) -> BadEncodingError:
        coding = self._coding.decode()
        return BadEncodingError(f"the body is not {coding}, as its Content-Encoding says: {why}")


def is_worth_it(headers: Headers) -> bool:
    """Whether a reply that begins with these headers is whole, JSON, and not small."""
    size, kind = 0, b""
    for name, value in headers:
        if name == b"content-length":
            size = int(value)
        elif name == b"content-type":
            kind = value
        elif name == b"content-encoding":
            return False
    return size >= MIN_BYTES and kind.startswith(JSON)


def accepts_gzip(headers: Headers) -> bool:
    """Whether a request with these headers takes a gzip reply (RFC 9110, 12.5.3)."""
    return _accepts(headers, b"gzip")


def accepted_coding(headers: Headers) -> bytes | None:
    """The coding that a request with these headers takes its reply in; gzip before deflate."""
    return next((coding for coding in (b"gzip", b"deflate") if _accepts(headers, coding)), None)


def _accepts(headers: Headers, coding: bytes) -> bool:
    return any(name == b"accept-encoding" and _names(value, coding) for name, value in headers)


@lru_cache(maxsize=64)
def _names(accepted: bytes, wanted: bytes) -> bool:
    weights = {}
    for part in accepted.lower().split(b","):
        coding, _, parameter = part.partition(b";")
        weight = parameter.strip().removeprefix(b"q=") or b"1"
        weights[coding.strip()] = weight.strip(b"0.") != b""
    return weights.get(wanted, weights.get(b"*", False))


async def gzipped(body: bytes, coding: bytes = b"gzip") -> bytes:
    """The same bytes for the same body: there is no time in it."""
    if len(body) < IN_A_THREAD_BYTES:
        return _gzip(body, coding)
    return await asyncio.to_thread(_gzip, body, coding)


def _gzip(body: bytes, coding: bytes) -> bytes:
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, CODINGS[coding])
    return compressor.compress(body) + compressor.flush()
