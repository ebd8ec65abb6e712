"""WebSockets from the client's side: the `websockets` package, and a bare socket where it is too
well behaved."""

import base64
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from service.protocols.frames import Reply, decode_replies
from tests.e2e.conftest import Server


def url(server: Server) -> str:
    return f"ws://127.0.0.1:{server.port}/ws"


@contextmanager
def connected(server: Server, **options: Any) -> Iterator[ClientConnection]:
    """An open /ws; extra `headers` by `additional_headers`."""
    with connect(url(server), close_timeout=2, max_size=None, **options) as connection:
        yield connection


def body(session_id: str, x: Iterable[Any], **more: Any) -> dict[str, Any]:
    return {"session_id": session_id, "x": list(x), **{"model": "sine-cell", **more}}


def ask(connection: ClientConnection, *bodies: Any) -> list[Any]:
    """A text frame for each, then as many replies."""
    for one in bodies:
        connection.send(one if isinstance(one, str) else json.dumps(one))
    return [read(connection) for _ in bodies]


def read(connection: ClientConnection) -> Any:
    text = connection.recv(timeout=30)
    assert isinstance(text, str)
    return json.loads(text)


def records_in(frame: str | bytes) -> list[Reply]:
    """Of a binary frame; none in a text frame."""
    return decode_replies(frame) if isinstance(frame, bytes) else []


def read_records(connection: ClientConnection, count: int) -> list[Reply]:
    """`count` records, of as many binary frames as they come in."""
    found: list[Reply] = []
    while len(found) < count:
        frame = connection.recv(timeout=30)
        assert isinstance(frame, bytes)
        found += decode_replies(frame)
    assert len(found) == count
    return found


def rest(connection: ClientConnection) -> tuple[list[str | bytes], int, str]:
    """What still comes, and the code and reason of the server's close."""
    found: list[str | bytes] = []
    try:
        while True:
            found.append(connection.recv(timeout=30))
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return found, closed.rcvd.code, closed.rcvd.reason


class BareClient:
    """A handshake and frames on a socket: nothing is read, and no ping answered, unless asked."""

    def __init__(self, server: Server, receive_buffer: int | None = None, **headers: str) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", server.port))
        key = base64.b64encode(os.urandom(16)).decode()
        lines = ["GET /ws HTTP/1.1", "Host: test", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.socket.recv(1)
        self.status = int(head.split()[1])

    def send(self, data: bytes, opcode: Opcode = Opcode.TEXT, fin: bool = True) -> None:
        self.socket.sendall(Frame(opcode, data, fin).serialize(mask=True))

    def read_to_end(self) -> bytes:
        """All bytes that still come."""
        found = b""
        while piece := self.socket.recv(65536):
            found += piece
        return found

    def __enter__(self) -> "BareClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
