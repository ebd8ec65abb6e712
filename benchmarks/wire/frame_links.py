"""Links over a WebSocket (`Link` has the rules).

The binary frames are those that service/protocols says for /ws.
"""

import json
import struct
from abc import abstractmethod
from collections.abc import Sequence

from benchmarks.wire.link import Answered, Link, Row, predict_body, session_of

KEY = "Y2Fyb3VzZWwtcGVlcnMtMQ=="  # any 16 bytes, base64 (RFC 6455, 4.1)
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10  # opcodes of frames


class FramesLink(Link):
    """A WebSocket; no extension, as few bytes as RFC 6455 allows.

    A client's frames are masked. The mask is 0, which leaves the bytes as they are: this client's
    time is not what is measured, the server's is the same.
    """

    opcode = TEXT

    def __init__(self, path: str, names: Sequence[str], answered: Answered) -> None:
        super().__init__(path, names, answered)
        self._buffer = b""

    def greet(self) -> None:
        head = (
            f"GET {self.path.format(session=self.names[0])} HTTP/1.1\r\nHost: localhost\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {KEY}\r\n\r\n"
        )
        self.transport.write(head.encode())

    def send(self, payload: bytes, opcode: int) -> None:
        size = len(payload)
        if size < 126:
            head = struct.pack(">BB", 0x80 | opcode, 0x80 | size)
        elif size < 1 << 16:
            head = struct.pack(">BBH", 0x80 | opcode, 0x80 | 126, size)
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, 0x80 | 127, size)
        self.transport.write(head + bytes(4) + payload)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        if not self.opened.done():
            head, end, data = data.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 101") or not end:
                self.fail(f"no WebSocket: {(head + data)[:300].decode(errors='replace')}")
                return
            self._open()
        place = 0
        while (frame := read_frame(data, place)) is not None:
            opcode, payload, place = frame
            if opcode == self.opcode:
                self.received(payload)
            elif opcode == PING:
                self.send(payload, PONG)
            else:
                self.fail(f"frame of opcode {opcode}: {payload[:300].decode(errors='replace')}")
        self._buffer = data[place:]
        self.flush()

    @abstractmethod
    def received(self, payload: bytes) -> None:
        """One whole message."""


class OwnTextLink(FramesLink):
    """A WebSocket of one session's own, JSON in text frames."""

    def question(self, session: int, x: Row, *, is_first: bool, step: int | None = None) -> bytes:
        return json.dumps({"x": [list(x)]}).encode()

    def ask(self, session: int, question: bytes) -> None:
        self.send(question, TEXT)

    def received(self, payload: bytes) -> None:
        self.answered(0, payload)


class TextLink(FramesLink):
    """A WebSocket of many sessions, a /predict body in each text frame."""

    shared = True

    def __init__(self, path: str, names: Sequence[str], answered: Answered) -> None:
        super().__init__(path, names, answered)
        self._places = {name.encode(): place for place, name in enumerate(names)}

    def question(self, session: int, x: Row, *, is_first: bool, step: int | None = None) -> bytes:
        return json.dumps(predict_body(self.names[session], x, step)).encode()

    def ask(self, session: int, question: bytes) -> None:
        self.send(question, TEXT)

    def received(self, payload: bytes) -> None:
        if payload.startswith(b'{"error"'):
            self.fail(payload[:300].decode(errors="replace"))
        else:
            self.answered(self._places[session_of(payload)], payload)


HEADER = struct.Struct("<BBBBIII")  # magic, version, kind, dtype, records, json bytes, reserved
REQUEST = struct.Struct("<IIqII")  # handle, steps, step, width, flags
REPLY = struct.Struct("<IIqIHHII")  # handle, steps, step, width, status, flags, frame, item
MAGIC, VERSION, ASKS, REPLIES, FLOAT32, NO_STEP = 0xCA, 1, 1, 2, 1, -1


class BinaryLink(FramesLink):
    """A WebSocket of many sessions; all that is asked at one time is one binary frame."""

    shared = True
    opcode = BINARY

    def __init__(self, path: str, names: Sequence[str], answered: Answered) -> None:
        super().__init__(path, names, answered)
        self._pending: list[bytes] = []
        self._new: dict[int, str] = dict(enumerate(names))  # sessions without a handle so far
        self._to_bind: list[dict[str, object]] = []

    def question(self, session: int, x: Row, *, is_first: bool, step: int | None = None) -> bytes:
        head = REQUEST.pack(session, 1, NO_STEP if step is None else step, len(x), 0)
        return head + struct.pack(f"<{len(x)}f", *x)

    def ask(self, session: int, question: bytes) -> None:
        if session in self._new:
            self._to_bind.append({"handle": session, "session_id": self._new.pop(session)})
        self._pending.append(question)

    def flush(self) -> None:
        if not self._pending:
            return
        text = json.dumps(self._to_bind).encode() if self._to_bind else b""
        header = HEADER.pack(MAGIC, VERSION, ASKS, FLOAT32, len(self._pending), len(text), 0)
        heads = [question[: REQUEST.size] for question in self._pending]
        values = [question[REQUEST.size :] for question in self._pending]
        self._pending.clear()
        self._to_bind.clear()
        self.send(b"".join([header, *heads, *values, text]), BINARY)

    def received(self, payload: bytes) -> None:
        magic, _, kind, dtype, records, json_bytes, _ = HEADER.unpack_from(payload)
        if (magic, kind, dtype) != (MAGIC, REPLIES, FLOAT32) or json_bytes:
            self.fail(f"frame {payload[:16]!r}: {payload[-json_bytes:][:300]!r}")
            return
        place = HEADER.size + records * REPLY.size
        for record in range(records):
            at = HEADER.size + record * REPLY.size
            handle, steps, _, width, _, _, _, _ = REPLY.unpack_from(payload, at)
            end = place + 4 * steps * width
            self.answered(handle, payload[place:end])
            place = end

    def read_y(self, reply: bytes) -> list[float]:
        return list(struct.unpack(f"<{len(reply) // 4}f", reply))


def read_frame(data: bytes, place: int) -> tuple[int, bytes, int] | None:
    """The frame at `place`: its opcode, its payload and where it ends; None if it is not whole."""
    if len(data) < place + 2:
        return None
    size, start = data[place + 1] & 0x7F, place + 2
    if size >= 126:
        form = ">H" if size == 126 else ">Q"
        if len(data) < start + struct.calcsize(form):
            return None
        size = struct.unpack_from(form, data, start)[0]
        start += struct.calcsize(form)
    end = start + size
    return None if len(data) < end else (data[place] & 0x0F, data[start:end], end)
