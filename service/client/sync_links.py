"""The connections of a blocking stream: a WebSocket, or an open /stream request.

Rules
- One thread receives; others may send meanwhile.
- What goes wrong is `Broken`, or `Refused` where the server said so before the stream began.
"""

import select
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Protocol

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

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


class Link(Protocol):
    """One connection."""

    def send(self, bodies: list[bytes]) -> None:
        """Send these requests; Broken if it cannot."""
        ...

    def receive(self, timeout_s: float) -> list[Message]:
        """The next answers, none if there are none in time; Broken, or Refused, at its end."""
        ...

    def close(self) -> None:
        """End it; what is under way is not waited for."""
        ...


class WebSocketLink:
    """Requests as text frames of /ws."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        """
        Raises:
            Refused: the server refused it.
            Broken: it could not be made.
        """
        self._stack = ExitStack()
        opening = connect(websocket_url(url), **websocket_options(headers, timeout_s))
        self._socket = self._stack.enter_context(opening)

    @classmethod
    def open(cls, url: str, headers: Mapping[str, str], timeout_s: float) -> "WebSocketLink":
        try:
            return cls(url, headers, timeout_s)
        except InvalidStatus as error:
            raise refusal_of_handshake(error) from None
        except (OSError, InvalidHandshake, EOFError) as error:
            raise Broken(f"not connected: {error}") from error

    def send(self, bodies: list[bytes]) -> None:
        try:
            for body in bodies:
                self._socket.send(body, text=True)
        except ConnectionClosed as error:
            raise Broken(str(error)) from error

    def receive(self, timeout_s: float) -> list[Message]:
        try:
            return [read_message(self._socket.recv(timeout_s), "frame")]
        except TimeoutError:
            return []
        except ConnectionClosed as error:
            raise Broken(str(error)) from error

    def close(self) -> None:
        self._stack.close()


class NdjsonLink:
    """Requests as lines of one POST /stream."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        host, port, is_tls = host_of(url)
        self._timeout_s = timeout_s
        self._stream = NdjsonStream(url, headers)
        self._lock = threading.Lock()  # neither h11 nor TLS takes two threads at once
        self._socket = socket.create_connection((host, port), timeout_s)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if is_tls:
                context = ssl.create_default_context()
                self._socket = context.wrap_socket(self._socket, server_hostname=host)
            self._socket.setblocking(False)
            self._write(self._stream.open())
        except BaseException:
            self._socket.close()
            raise

    @classmethod
    def open(cls, url: str, headers: Mapping[str, str], timeout_s: float) -> "NdjsonLink":
        try:
            return cls(url, headers, timeout_s)
        except OSError as error:
            raise Broken(f"not connected: {error}") from error

    def send(self, bodies: list[bytes]) -> None:
        with self._lock:
            data = self._stream.write(bodies)
        self._write(data)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                with self._lock:
                    try:
                        left = left[self._socket.send(left) :]
                        continue
                    except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                        pass
                if not select.select([], [self._socket], [], self._timeout_s)[1]:
                    raise Broken(f"nothing could be sent for {self._timeout_s} s")
        except (OSError, ValueError) as error:  # ValueError: it was closed meanwhile
            raise Broken(f"not sent: {error}") from error

    def receive(self, timeout_s: float) -> list[Message]:
        try:
            lines = self._read()
            if lines is None and select.select([self._socket], [], [], timeout_s)[0]:
                lines = self._read()
        except (OSError, ValueError) as error:  # ValueError: it was closed meanwhile
            raise Broken(f"not read: {error}") from error
        if self._stream.ended is not None and not lines:
            raise Broken(self._stream.ended)
        return [read_message(line, "line") for line in lines or ()]

    def _read(self) -> list[bytes] | None:
        """What is there; None: nothing yet."""
        with self._lock:
            try:
                return self._stream.read(self._socket.recv(READ_BYTES))
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return None

    def close(self) -> None:
        self._socket.close()


def open_link(transport: str, url: str, headers: Mapping[str, str], timeout_s: float) -> Link:
    """
    Raises:
        Refused: the server refused it.
        Broken: it could not be made.
    """
    kind = WebSocketLink if transport == "ws" else NdjsonLink
    return kind.open(url, headers, timeout_s)
