"""POST /stream of a real `bentoml serve`, by raw sockets where timing is the point."""

import json
import random
import select
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from service.model import Model
from tests.e2e.conftest import Server, Start
from tests.e2e.test_http import sequence, whole


class Duplex:
    """One open /stream request: send a line, read a line, in any order."""

    def __init__(self, connection: socket.socket, *headers: str) -> None:
        self._socket = connection
        self._reader = connection.makefile("rb")
        self._lines: list[bytes] = []
        self._partial = b""
        connection.sendall(
            b"POST /stream HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n"
            b"content-type: application/x-ndjson\r\n"
            + b"".join(header.encode() + b"\r\n" for header in headers)
            + b"\r\n"
        )

    def head(self) -> tuple[int, dict[str, str]]:
        """The status and headers of the response."""
        status = int(self._reader.readline().split()[1])
        headers: dict[str, str] = {}
        while line := self._reader.readline().strip().decode():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return status, headers

    def send(self, *lines: dict[str, Any] | bytes, end: bytes = b"\n") -> None:
        body = b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + end for line in lines
        )
        self._socket.sendall(b"%x\r\n%s\r\n" % (len(body), body))

    def finish(self) -> None:
        """End the request's body."""
        self._socket.sendall(b"0\r\n\r\n")

    def read(self) -> Any:
        """The next line of the response; None at its end."""
        while not self._lines:
            size = int(self._reader.readline(), 16)
            chunk = self._reader.read(size + 2)[:-2]
            if size == 0:
                return None
            *whole_lines, self._partial = (self._partial + chunk).split(b"\n")
            self._lines += whole_lines
        return json.loads(self._lines.pop(0))

    def rest(self) -> list[Any]:
        return list(iter(self.read, None))

    def close(self) -> None:
        """Let go of the connection, whatever is under way."""
        self._reader.close()


@contextmanager
def duplex(server: Server) -> Iterator[Duplex]:
    with server.connect() as connection:
        stream = Duplex(connection)
        try:
            yield stream
        finally:
            stream.close()


def line(session_id: str, x: Iterable[Any], **more: Any) -> dict[str, Any]:
    return {"session_id": session_id, "x": list(x), **{"model": "sine-cell", **more}}


def stream(client: httpx.Client, *lines: dict[str, Any] | bytes) -> list[Any]:
    """All lines at once, all replies at the end."""
    body = b"\n".join(
        part if isinstance(part, bytes) else json.dumps(part).encode() for part in lines
    )
    reply = client.post("/stream", content=body)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/x-ndjson"
    return [json.loads(part) for part in reply.text.splitlines()]


def test_a_reply_comes_while_the_request_is_still_being_sent(
    server: Server, models: dict[str, Model]
) -> None:
    """Each answer is read before the next line is written; headers come before any line."""
    x = sequence("sine-cell", 20, 1)
    with duplex(server) as stream:
        status, headers = stream.head()
        assert (status, headers["content-type"]) == (200, "application/x-ndjson")
        y = []
        for step in range(20):
            stream.send(line("duplex", x[step : step + 1].tolist(), step=step))
            reply = stream.read()
            assert (reply["step"], reply["created"]) == (step + 1, step == 0)
            y += reply["y"]
        stream.finish()
        assert stream.rest() == []
    assert y == whole(models["sine-cell"], x)


def test_a_line_may_come_in_pieces(server: Server) -> None:
    """Chunks of the body are not lines."""
    with duplex(server) as stream:
        stream.head()
        raw = json.dumps(line("pieces", [[0.5]])).encode()
        for piece in (raw[:10], raw[10:11], raw[11:], b"\r\n\n  \n"):
            stream.send(piece, end=b"")
        assert stream.read()["step"] == 1
        stream.send(raw, end=b"")  # the last line, without a newline
        stream.finish()
        (last,) = stream.rest()
        assert last["step"] == 2


def test_many_sessions_share_a_stream_each_in_its_order(
    client: httpx.Client, models: dict[str, Model]
) -> None:
    """Fifty sessions of two models, interleaved at random in one request."""
    rng = random.Random(3)
    names = [rng.choice(["sine-cell", "series-lstm"]) for _ in range(50)]
    inputs = [sequence(name, 30, 100 + n) for n, name in enumerate(names)]
    at = [0] * 50
    lines = []
    while open_ones := [n for n in range(50) if at[n] < 30]:
        n = rng.choice(open_ones)
        end = min(30, at[n] + rng.choice([1, 1, 3, 10]))
        lines.append(line(f"many-{n}", inputs[n][at[n] : end].tolist(), model=names[n]))
        at[n] = end
    replies = stream(client, *lines)
    assert len(replies) == len(lines)
    for n, (name, x) in enumerate(zip(names, inputs, strict=True)):
        mine = [reply for reply in replies if reply["session_id"] == f"many-{n}"]
        assert [reply["step"] for reply in mine] == sorted(reply["step"] for reply in mine)
        assert [row for reply in mine for row in reply["y"]] == whole(models[name], x)


def test_bad_lines_between_good_ones_do_not_end_the_stream(
    client: httpx.Client, models: dict[str, Model]
) -> None:
    """Each gets an error line with its number; blank lines count, and get nothing."""
    x = sequence("sine-cell", 3, 4).tolist()
    replies = stream(
        client,
        line("mixed", x[:1]),  # 1
        b"not json",
        b"",
        line("mixed", [[1, 2]]),  # 4
        line("mixed", [["a"]], step=1),
        b'{"session_id":"mixed","x":[[NaN]]}',  # 6
        line("mixed", x[1:2], step=7),
        line("mixed", x[1:2], model="nobody"),  # 8
        b"   ",
        line("mixed", x[1:]),  # 10
    )
    errors = {reply["line"]: reply for reply in replies if "error" in reply}
    assert {number: reply["error"]["code"] for number, reply in errors.items()} == {
        2: "invalid_json",
        4: "bad_shape",
        5: "bad_shape",
        6: "not_finite",
        7: "step_conflict",
        8: "unknown_model",
    }
    assert "session_id" not in errors[2]
    assert (errors[4]["session_id"], "step" in errors[4]) == ("mixed", False)
    assert (errors[7]["session_id"], errors[7]["step"]) == ("mixed", 7)
    assert errors[7]["error"]["expected"] == 1
    good = [reply for reply in replies if "error" not in reply]
    assert [reply["step"] for reply in good] == [1, 3]
    assert [row for reply in good for row in reply["y"]] == whole(models["sine-cell"], np.array(x))


def test_a_line_over_the_limit_is_refused_and_the_stream_goes_on(start: Start) -> None:
    """It is not kept while it comes."""
    server = start(CAROUSEL_MAX_BODY_BYTES="1000")
    server.wait_until_it_listens()
    with duplex(server) as stream:
        stream.head()
        stream.send(line("long", [[0.5]]))
        assert stream.read()["step"] == 1
        for _ in range(100):
            stream.send(b" " * 1000, end=b"")
        stream.send(b"\n", end=b"")
        refused = stream.read()
        assert (refused["error"]["code"], refused["line"]) == ("too_long", 2)
        stream.send(line("long", [[0.5]]))
        assert stream.read()["step"] == 2
        stream.send(b" " * 2000, end=b"")
        stream.finish()
        (last,) = stream.rest()
        assert (last["error"]["code"], last["line"]) == ("too_long", 4)


def test_a_client_that_vanishes_leaves_whole_steps_only(
    server: Server, client: httpx.Client, models: dict[str, Model]
) -> None:
    """What had not started is not run; the session goes on from where it says it stands."""
    x = sequence("sine-cell", 3000, 6)
    with duplex(server) as gone:
        gone.send(*(line("vanish", x[n : n + 1].tolist(), step=n) for n in range(200)))
        gone.head()
        assert gone.read()["step"] == 1
    step = client.get("/sessions/vanish").json()["step"]
    while True:  # the steps that had started may still be on their way
        assert 1 <= step <= 200
        reply = client.post("/predict", json=line("vanish", x[step:].tolist(), step=step)).json()
        if "error" not in reply:
            break
        assert reply["error"]["code"] == "step_conflict"
        step = reply["error"]["expected"]
    assert reply["y"] == whole(models["sine-cell"], x)[step:]


def test_a_slow_reader_slows_only_itself(server: Server, client: httpx.Client) -> None:
    """The server stops reading from it, and answers others meanwhile."""
    chunk = json.dumps(line("slow", [[0.1]] * 500)).encode() + b"\n"
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream = Duplex(connection)
        connection.settimeout(2)  # once the server stops reading, nothing more can be sent
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 100_000:
                stream.send(chunk, end=b"")
                sent += 1
                client.post("/predict", json=line("quick", [[0.1]])).raise_for_status()
        steps = [client.get("/sessions/slow").json()["step"] for _ in range(2)]
        assert steps[0] == steps[1] <= 500 * sent
        client.post("/predict", json=line("quick", [[0.1]])).raise_for_status()
        stream.close()


def test_an_empty_stream_has_an_empty_answer(client: httpx.Client) -> None:
    """No line, no reply."""
    assert stream(client) == []
    assert stream(client, b"", b"  ") == []


CURL = [shutil.which("curl") or "curl", "-sS", "--max-time", "30", "-N", "-X", "POST"]
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@needs_curl
def test_curl_sends_a_file_of_lines(client: httpx.Client, server: Server) -> None:
    """`curl -N -T -` reads its standard input to the end."""
    lines = [json.dumps(line("curl-file", [[0.5]])) for _ in range(3)]
    command = [*CURL, "-T", "-", server.url + "/stream"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(reply)["step"] for reply in done.stdout.splitlines()] == [1, 2, 3]


@needs_curl
def test_curl_shows_replies_while_lines_are_still_to_come(
    server: Server, models: dict[str, Model]
) -> None:
    """Some lines late: curl 7.88 looks for replies only between two reads of its input."""
    x = sequence("sine-cell", 100, 9)
    command = [*CURL, "-T", "-", server.url + "/stream"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        sent, seen = 0, False
        while not seen and sent < len(x):
            row = x[sent : sent + 1].tolist()
            process.stdin.write(json.dumps(line("curl", row)).encode() + b"\n")
            process.stdin.flush()
            sent += 1
            seen = bool(select.select([process.stdout], [], [], 0.1)[0])
        assert seen
        process.stdin.close()
        y = [row for reply in process.stdout for row in json.loads(reply)["y"]]
    assert process.returncode == 0
    assert y == whole(models["sine-cell"], x[:sent])
