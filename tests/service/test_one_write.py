"""Whole replies under uvicorn's own protocols, over a real socket."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from service.protocols.around import Around
from service.protocols.asgi import App, ClientGone, Message, Receive, Scope, Send, send_json
from service.protocols.one_write import send_in_one_write

KEPT = b"POST /%d HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
LAST = KEPT.replace(b"host: a", b"host: a\r\nconnection: close")
Use = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, b'"%s"' % scope["path"].encode())

    await Around().answer(answer, scope, receive, send)


async def with_server(http: str, app: App, use: Use) -> list[list[bytes]]:
    """What each write of the server was, by connection, while `use` asks."""
    config: Any = uvicorn.Config(
        app, http=http, loop="asyncio", lifespan="off", log_level="error", timeout_keep_alive=60
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    writes: list[list[bytes]] = []

    def protocol() -> asyncio.Protocol:
        made: asyncio.Protocol = config.http_protocol_class(
            config=config, server_state=server.server_state, app_state={}
        )
        begin = made.connection_made
        seen: list[bytes] = []
        writes.append(seen)

        def connection_made(transport: Any) -> None:
            write = transport.write

            def note_and_write(data: bytes) -> None:
                seen.append(bytes(data))
                write(data)

            transport.write = note_and_write
            begin(transport)

        made.connection_made = connection_made  # type: ignore[method-assign]
        return made

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        loop = asyncio.get_running_loop()
        serving = await loop.create_server(protocol, sock=listening)
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        await asyncio.wait_for(use(reader, writer), 10)
        writer.close()
        serving.close()
    return writes


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_a_reply_is_one_write_and_pipelined_ones_keep_their_order(http: str) -> None:
    """The last closes the connection, as it was asked to, and is there whole."""
    found: list[bytes] = []

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(KEPT % 1 + KEPT % 2 + LAST % 3)
        found.append(await reader.read())

    ((*writes,),) = asyncio.run(with_server(http, app, use))
    assert [b'"/%d"' % n in write for n, write in enumerate(writes, 1)] == [True] * 3
    assert all(write.startswith(b"HTTP/1.1 200 OK\r\n") for write in writes)
    assert found == [b"".join(writes)]
    assert b"connection: close" in writes[2].lower()


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_a_head_request_gets_the_head(http: str) -> None:
    """And none of the body."""

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HEAD /1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        await reader.read()

    ((write,),) = asyncio.run(with_server(http, app, use))
    assert b"content-length: 4\r\n" in write
    assert write.endswith(b"\r\n\r\n")


class Cycle:
    """Of a server's request: what `send_in_one_write` knows of it, over a broken transport."""

    def __init__(self) -> None:
        self.transport: Any = self
        self.closed = False

    async def send(self, message: Message) -> None:
        self.transport.write(message.get("body", b"head "))
        if message["type"] == "http.response.body":
            assert not self.transport.is_closing()
            self.transport.close()
            assert self.transport.is_closing()

    def write(self, data: bytes) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed")

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def test_a_client_that_has_gone_is_told_of_and_the_cycle_has_its_transport_back() -> None:
    """uvloop says so when the kept writes reach it."""

    async def scenario() -> None:
        cycle = Cycle()
        start, body = {"type": "http.response.start"}, {"type": "http.response.body", "body": b"b"}
        with pytest.raises(RuntimeError, match="the handler is closed"):
            await send_in_one_write(cycle.send, start, body)
        assert cycle.transport is cycle

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            with pytest.raises(ClientGone):
                await send_json(send, b"{}")

        async def receive() -> Message:
            return {}

        scope = {"type": "http", "path": "/", "headers": []}
        await Around().answer(answer, scope, receive, cycle.send)

    asyncio.run(scenario())
