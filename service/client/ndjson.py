"""POST /stream as bytes: lines into a request body that stays open, lines out of its response.

httpx sends a whole request body before it reads a response, which is half of a stream; so this is
HTTP/1.1 by h11, the library under httpx, and full duplex. Pure: no socket.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

import h11

from service.client.errors import refusal_of_bytes


class NdjsonStream:
    """One open /stream request."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        """
        Args:
            url: of the service.
        """
        self._connection = h11.Connection(h11.CLIENT)
        parts = urlsplit(url)
        self._target = parts.path.rstrip("/") + "/stream"
        self._headers = {
            "host": parts.netloc.rpartition("@")[2],
            "content-type": "application/x-ndjson",
            "transfer-encoding": "chunked",
            **headers,
        }
        self._status: int | None = None
        self._retry_after: str | None = None
        self._partial = bytearray()
        self.ended: str | None = None  # why nothing more will come

    def open(self) -> bytes:
        """What is sent first."""
        request = h11.Request(
            method="POST", target=self._target, headers=list(self._headers.items())
        )
        return self._send(request)

    def write(self, bodies: list[bytes]) -> bytes:
        """Some lines."""
        return self._send(h11.Data(data=b"".join(body + b"\n" for body in bodies)))

    def close(self) -> bytes:
        """The end of the request."""
        return self._send(h11.EndOfMessage())

    def _send(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> bytes:
        return self._connection.send(event) or b""

    def read(self, data: bytes) -> list[bytes]:
        """The whole lines in what came; b"": the connection was closed.

        Raises:
            Refused: the request was refused.
        """
        try:
            self._connection.receive_data(data)
            while self.ended is None:
                event = self._connection.next_event()
                if event in (h11.NEED_DATA, h11.PAUSED):
                    break
                self._take(event)
        except h11.RemoteProtocolError as error:
            self.ended = str(error)
        if self._status not in (None, 200):
            if self.ended is not None:
                raise refusal_of_bytes(bytes(self._partial), self._status, self._retry_after)
            return []
        *lines, rest = bytes(self._partial).split(b"\n")
        self._partial = bytearray(rest)
        return [line for line in lines if line]

    def _take(self, event: object) -> None:
        if isinstance(event, h11.Response):
            self._status = event.status_code
            headers = dict(event.headers)
            self._retry_after = headers.get(b"retry-after", b"").decode() or None
        elif isinstance(event, h11.Data):
            self._partial += event.data
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            self.ended = "the server ended the stream"
