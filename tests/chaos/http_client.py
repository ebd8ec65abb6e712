"""HTTP/1.1 by hand over asyncio: its owner decides what is sent, when, and where it breaks off.

Rules
- What goes wrong on a connection is `Broken`, which says whether a byte of a reply had come.
- A reply is whole or it is `Broken`: half a reply is never returned.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"


class Broken(Exception):
    """The connection could not be opened, or broke off."""

    def __init__(self, why: str, reply_began: bool = False) -> None:
        super().__init__(why)
        self.reply_began = reply_began


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole reply."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One connection to a server on this machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._reply_began = False
        self._partial = b""
        self._lines: list[bytes] = []

    @classmethod
    async def open(cls, port: int) -> "Connection":
        try:
            return cls(*await asyncio.open_connection(HOST, port, limit=1 << 22))
        except OSError as error:
            raise Broken(f"not opened: {error}") from None

    async def send(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise Broken(f"not sent: {error}", self._reply_began) from None

    async def send_line(self, line: bytes) -> None:
        """One NDJSON line as one chunk of a chunked body."""
        await self.send(chunked(line))

    async def read_head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers, names in lower case."""
        self._reply_began = False
        raw = await self._read(self._reader.readuntil(b"\r\n\r\n"))
        first, *rest = raw.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in rest if line)
        return int(first.split()[1]), headers

    async def read_reply(self) -> Reply:
        """One reply, of a stated length or chunked."""
        status, headers = await self.read_head()
        if "content-length" in headers:
            body = await self._read(self._reader.readexactly(int(headers["content-length"])))
        else:
            body = b"".join([chunk async for chunk in self._chunks()])
        return Reply(status, headers, body)

    async def read_line(self) -> bytes | None:
        """The next line of a chunked reply; None at its end."""
        while not self._lines:
            chunk = await self._chunk()
            if not chunk:
                return None
            *self._lines, self._partial = (self._partial + chunk).split(b"\n")
        return self._lines.pop(0)

    def cut(self) -> None:
        """Vanish: reset the connection, whatever is under way."""
        self._writer.transport.abort()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while chunk := await self._chunk():
            yield chunk

    async def _chunk(self) -> bytes:
        size = int(await self._read(self._reader.readuntil(b"\r\n")), 16)
        return (await self._read(self._reader.readexactly(size + 2)))[:-2]

    async def _read(self, reading: Any) -> bytes:
        try:
            data: bytes = await reading
        except asyncio.IncompleteReadError as error:
            began = self._reply_began or bool(error.partial)
            raise Broken("closed by the server", began) from None
        except OSError as error:
            raise Broken(f"not read: {error}", self._reply_began) from None
        self._reply_began = True
        return data


@asynccontextmanager
async def connect(port: int) -> AsyncIterator[Connection]:
    """A connection that is reset at the end, whatever happened."""
    connection = await Connection.open(port)
    try:
        yield connection
    finally:
        connection.cut()


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """The bytes of a request of a stated length."""
    head = f"{method} {path} HTTP/1.1\r\nhost: chaos\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunked(line: bytes) -> bytes:
    """One NDJSON line as one chunk of a chunked body."""
    return b"%x\r\n%s\n\r\n" % (len(line) + 1, line)


STREAM_HEAD = (
    b"POST /stream HTTP/1.1\r\nhost: chaos\r\ntransfer-encoding: chunked\r\n"
    b"content-type: application/x-ndjson\r\n\r\n"
)
END_OF_STREAM = b"0\r\n\r\n"


async def ask(port: int, method: str, path: str, body: bytes = b"") -> Reply:
    """One request on a connection of its own."""
    async with connect(port) as connection:
        await connection.send(request(method, path, body))
        return await connection.read_reply()
