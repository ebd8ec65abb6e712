"""One connection to a server: how a step is asked and answered.

Rules
- The same code asks every contestant: bytes are made before the clock runs (`question`), replies
  are cut out of the stream and handed on whole (`answered`), and are parsed only where y is wanted
  (`read_y`). No numpy here: the load generator starts in a moment.
- A link that is not `shared` has one session and one question under way; on a shared one are many,
  and what is asked while a reply is handled leaves together at its end.
- Whatever is not the expected reply ends the link: `trouble` says why, with the reply.

The binary frames are those that service/protocols says for /ws.
"""

import asyncio
import json
import struct
from abc import abstractmethod
from collections.abc import Callable, Sequence

import httptools

Answered = Callable[[int, bytes], None]
Row = Sequence[float]

KEY = "Y2Fyb3VzZWwtcGVlcnMtMQ=="  # any 16 bytes, base64 (RFC 6455, 4.1)
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10  # opcodes of frames


class LinkError(Exception):
    """A server did not answer as it should; the message has what it said."""


class Link(asyncio.Protocol):
    """A connection that carries some of the sessions `names`, by their places in it."""

    shared = False

    def __init__(self, path: str, names: Sequence[str], answered: Answered) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.trouble: asyncio.Future[str] = loop.create_future()
        self.names = names
        self.answered = answered
        self.path = path
        self.transport: asyncio.Transport

    @abstractmethod
    def question(self, session: int, x: Row, *, is_first: bool, step: int | None = None) -> bytes:
        """The bytes that ask for one step; `step`, its index, where a retry is to be safe."""

    @abstractmethod
    def ask(self, session: int, question: bytes) -> None:
        """Send it, or keep it until `flush`."""

    def flush(self) -> None:
        """Send what was kept."""

    def read_y(self, body: bytes) -> list[float]:
        """The row of y in a reply."""
        row: list[float] = json.loads(body)["y"][0]
        return row

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.greet()

    def greet(self) -> None:
        """What is said before the first question."""
        self._open()

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"the connection was closed: {exc}" if exc else "the connection was closed")

    def fail(self, reason: str) -> None:
        for future in (self.trouble, self.opened):
            if not future.done():
                if future is self.opened:
                    future.set_exception(LinkError(reason))
                    future.exception()  # looked at: nobody may be waiting
                else:
                    self.trouble.set_result(reason)

    def close(self) -> None:
        self.transport.abort()

    def _open(self) -> None:
        if not self.opened.done():
            self.opened.set_result(None)


class HttpLink(Link):
    """POST of a JSON body, one after the other; keep-alive."""

    def __init__(self, path: str, names: Sequence[str], answered: Answered) -> None:
        super().__init__(path, names, answered)
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._session = 0

    def body(self, session: int, x: Row, is_first: bool, step: int | None) -> dict[str, object]:
        return predict_body(self.names[session], x, step)

    def question(self, session: int, x: Row, *, is_first: bool, step: int | None = None) -> bytes:
        return post(self.path, json.dumps(self.body(session, x, is_first, step)).encode())

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of a reply."""

    def ask(self, session: int, question: bytes) -> None:
        self._session = session
        self.transport.write(question)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(f"no HTTP: {error}: {data[:300]!r}")

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._parts)
        self._parts.clear()
        status = self._parser.get_status_code()
        if status != 200:
            self.fail(f"{status} {body[:300].decode(errors='replace')}")
        else:
            self.answered(self._session, body)


class V2Link(HttpLink):
    """The Open Inference Protocol v2 with Triton's sequence extension, tensors as JSON."""

    def parameters(self, session: int, is_first: bool) -> dict[str, object]:
        start = {"sequence_start": True} if is_first else {}
        return {"sequence_id": self.names[session], **start}

    def body(self, session: int, x: Row, is_first: bool, step: int | None) -> dict[str, object]:
        tensor = {"name": "x", "shape": [1, 1, len(x)], "datatype": "FP32", "data": list(x)}
        return {"parameters": self.parameters(session, is_first), "inputs": [tensor]}

    def read_y(self, body: bytes) -> list[float]:
        outputs = {tensor["name"]: tensor["data"] for tensor in json.loads(body)["outputs"]}
        row: list[float] = outputs["y"]
        return row


class V2BinaryLink(V2Link):
    """The same with the bytes of tensors after the JSON, as tritonclient sends it by default."""

    json_bytes = 0  # of the last reply

    def question(self, session: int, x: Row, *, is_first: bool, step: int | None = None) -> bytes:
        body = self.body(session, x, is_first, step)
        values = struct.pack(f"<{len(x)}f", *x)
        tensor = {"name": "x", "shape": [1, 1, len(x)], "datatype": "FP32"}
        body["inputs"] = [tensor | {"parameters": {"binary_data_size": len(values)}}]
        body["parameters"] = self.parameters(session, is_first) | {"binary_data_output": True}
        text = json.dumps(body).encode()
        length = f"Inference-Header-Content-Length: {len(text)}\r\n"
        return post(self.path, text + values, "application/octet-stream", length)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self.json_bytes = int(value)

    def read_y(self, body: bytes) -> list[float]:
        values = body[self.json_bytes :]
        outputs = json.loads(body[: self.json_bytes])["outputs"]
        if [tensor["name"] for tensor in outputs] != ["y"]:
            raise LinkError(f"expected the one output y as bytes, got {body[:300]!r}")
        return list(struct.unpack(f"<{len(values) // 4}f", values))


class NdjsonLink(Link):
    """One POST whose lines are questions, and whose reply's lines are answers."""

    shared = True

    def __init__(self, path: str, names: Sequence[str], answered: Answered) -> None:
        super().__init__(path, names, answered)
        self._parser = httptools.HttpResponseParser(self)
        self._places = {name.encode(): place for place, name in enumerate(names)}
        self._pending: list[bytes] = []
        self._rest = b""

    def greet(self) -> None:
        head = f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.transport.write(head.encode())
        self._open()

    def question(self, session: int, x: Row, *, is_first: bool, step: int | None = None) -> bytes:
        return json.dumps(predict_body(self.names[session], x, step)).encode() + b"\n"

    def ask(self, session: int, question: bytes) -> None:
        self._pending.append(question)

    def flush(self) -> None:
        if self._pending:
            lines = b"".join(self._pending)
            self._pending.clear()
            self.transport.write(b"%x\r\n%b\r\n" % (len(lines), lines))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(f"no HTTP: {error}: {data[:300]!r}")
        self.flush()

    def on_body(self, body: bytes) -> None:
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            if self._parser.get_status_code() != 200 or line.startswith(b'{"error"'):
                self.fail(line[:300].decode(errors="replace"))
            else:
                self.answered(self._places[session_of(line)], line)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self.fail(f"{status}, the reply ended: {self._rest[:300].decode(errors='replace')}")


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

    def read_y(self, body: bytes) -> list[float]:
        return list(struct.unpack(f"<{len(body) // 4}f", body))


LINKS: dict[str, type[Link]] = {
    "http": HttpLink,
    "v2": V2Link,
    "v2 binary": V2BinaryLink,
    "ndjson": NdjsonLink,
    "own text frames": OwnTextLink,
    "text frames": TextLink,
    "binary frames": BinaryLink,
}


def predict_body(name: str, x: Row, step: int | None) -> dict[str, object]:
    body: dict[str, object] = {"session_id": name, "x": [list(x)]}
    return body if step is None else {**body, "step": step}


def post(path: str, body: bytes, kind: str = "application/json", headers: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{headers}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def session_of(reply: bytes) -> bytes:
    """The name in a reply that begins {"session_id":"NAME", .."""
    start = reply.index(b'"session_id":"') + 14
    return reply[start : reply.index(b'"', start)]


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
