"""Links over HTTP: a POST for each step, or one whose lines are steps (`Link` has the rules)."""

import json
import struct
from collections.abc import Sequence

import httptools

from benchmarks.wire.link import Answered, Link, LinkError, Row, predict_body, session_of


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

    def read_y(self, reply: bytes) -> list[float]:
        outputs = {tensor["name"]: tensor["data"] for tensor in json.loads(reply)["outputs"]}
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

    def read_y(self, reply: bytes) -> list[float]:
        values = reply[self.json_bytes :]
        outputs = json.loads(reply[: self.json_bytes])["outputs"]
        if [tensor["name"] for tensor in outputs] != ["y"]:
            raise LinkError(f"expected the one output y as bytes, got {reply[:300]!r}")
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


def post(path: str, body: bytes, kind: str = "application/json", headers: str = "") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{headers}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
