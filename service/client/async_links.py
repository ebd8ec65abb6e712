"""The connections of an asyncio stream: a WebSocket, or an open /stream request.

One task receives, another sends. What goes wrong is `Broken`, or `Refused` where the server said so
before the stream began.
"""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from service.client.message import (
    READ_BYTES,
    Broken,
    Message,
    host_of,
    read_message,
    refusal_of_handshake,
    websocket_options,
    websocket_url,
)
from service.client.ndjson import NdjsonStream


class AsyncLink(Protocol):
    """One connection."""

    async def send(self, bodies: list[bytes]) -> None:
        """Send these requests; Broken if it cannot."""
        ...

    async def receive(self) -> list[Message]:
        """The next answers, one or more; Broken, or Refused, at its end."""
        ...

    async def close(self) -> None:
        """End it; what is under way is not waited for."""
        ...


class AsyncWebSocketLink:
    """Requests as text frames of /ws."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    @classmethod
    async def open(
        cls, url: str, headers: Mapping[str, str], timeout_s: float
    ) -> "AsyncWebSocketLink":
        try:
            return cls(await connect(websocket_url(url), **websocket_options(headers, timeout_s)))
        except InvalidStatus as error:
            raise refusal_of_handshake(error) from None
        except (OSError, InvalidHandshake, EOFError) as error:
            raise Broken(f"not connected: {error}") from error

    async def send(self, bodies: list[bytes]) -> None:
        try:
            for body in bodies:
                await self._connection.send(body, text=True)
        except ConnectionClosed as error:
            raise Broken(str(error)) from error

    async def receive(self) -> list[Message]:
        try:
            return [read_message(await self._connection.recv(), "frame")]
        except ConnectionClosed as error:
            raise Broken(str(error)) from error

    async def close(self) -> None:
        await self._connection.close()


class AsyncNdjsonLink:
    """Requests as lines of one POST /stream."""

    def __init__(
        self,
        stream: NdjsonStream,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        timeout_s: float,
    ) -> None:
        self._stream = stream
        self._reader = reader
        self._writer = writer
        self._timeout_s = timeout_s

    @classmethod
    async def open(
        cls, url: str, headers: Mapping[str, str], timeout_s: float
    ) -> "AsyncNdjsonLink":
        host, port, is_tls = host_of(url)
        stream = NdjsonStream(url, headers)
        try:
            async with asyncio.timeout(timeout_s):
                context = ssl.create_default_context() if is_tls else None
                ends = await asyncio.open_connection(host, port, ssl=context)
        except OSError as error:  # TimeoutError too
            raise Broken(f"not connected: {error}") from error
        link = cls(stream, *ends, timeout_s)
        await link._write(stream.open())
        return link

    async def send(self, bodies: list[bytes]) -> None:
        await self._write(self._stream.write(bodies))

    async def _write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            async with asyncio.timeout(self._timeout_s):
                await self._writer.drain()
        except OSError as error:
            raise Broken(f"not sent: {error}") from error

    async def receive(self) -> list[Message]:
        while True:
            if self._stream.ended is not None:
                raise Broken(self._stream.ended)
            try:
                data = await self._reader.read(READ_BYTES)
            except OSError as error:
                raise Broken(f"not read: {error}") from error
            if lines := self._stream.read(data):
                return [read_message(line, "line") for line in lines]

    async def close(self) -> None:
        self._writer.transport.abort()


async def open_async_link(
    transport: str, url: str, headers: Mapping[str, str], timeout_s: float
) -> AsyncLink:
    """
    Raises:
        Refused: the server refused it.
        Broken: it could not be made.
    """
    kind = AsyncWebSocketLink if transport == "ws" else AsyncNdjsonLink
    return await kind.open(url, headers, timeout_s)
