"""HTTP that is not what it should be, byte by byte: refused or cut off, never a 5xx, never run."""

import json
import re
import socket
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.conftest import FUZZ, VICTIM, Target

BODY = json.dumps({"session_id": VICTIM, "x": [[0.5]]}).encode()
BYSTANDER = json.dumps({"session_id": "bystander", "x": [[0.5]]}).encode()
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
TIMEOUT_S = 10


def exchange(target: Target, data: bytes) -> list[int]:
    """Send it, say that no more will come, and read all; the statuses of the replies."""
    received = b""
    with target.server.connect() as connection:
        connection.settimeout(TIMEOUT_S)
        with suppress(ConnectionError):  # it may hang up in the middle
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(1 << 16):
                received += chunk
    assert b"Traceback" not in received
    return [int(status) for status in STATUS.findall(received)]


def framed(*headers: str, body: bytes = BODY, path: str = "/predict") -> bytes:
    head = "\r\n".join([f"POST {path} HTTP/1.1", "host: fuzz", *headers])
    return head.encode("latin-1") + b"\r\n\r\n" + body


SIZE = len(BODY)
NEVER_WHOLE = {
    "one byte is missing": framed(f"content-length: {SIZE + 1}"),
    "one byte too many": framed(f"content-length: {SIZE - 1}"),
    "no length at all": framed(),
    "a negative length": framed(f"content-length: -{SIZE}"),
    "a signed length": framed(f"content-length: +{SIZE}"),
    "a length with a fraction": framed(f"content-length: {SIZE}.0"),
    "a length in hexadecimal": framed(f"content-length: {SIZE:#x}"),
    "an immense length": framed(f"content-length: {10**30}"),
    "two lengths": framed(f"content-length: {SIZE}", f"content-length: {SIZE + 1}"),
    "a list of lengths": framed(f"content-length: {SIZE}, {SIZE}"),
    "chunks that are none": framed("transfer-encoding: chunked"),
    "a chunk without an end": framed(
        "transfer-encoding: chunked", body=b"%x\r\n%s\r\n" % (SIZE, BODY)
    ),
    "a chunk that is too short": framed(
        "transfer-encoding: chunked", body=b"%x\r\n%s\r\n0\r\n\r\n" % (SIZE + 9, BODY)
    ),
    "a negative chunk": framed("transfer-encoding: chunked", body=b"-1\r\n%s\r\n0\r\n\r\n" % BODY),
    "an immense chunk": framed(
        "transfer-encoding: chunked", body=b"%s\r\n%s\r\n0\r\n\r\n" % (b"f" * 32, BODY)
    ),
    "chunked and a length": framed(
        f"content-length: {SIZE}", "transfer-encoding: chunked", body=b"0\r\n\r\n" + BODY
    ),
    "an unknown coding": framed("transfer-encoding: gzip", f"content-length: {SIZE}"),
    "a header without a colon": framed("nothing", f"content-length: {SIZE}"),
    "a NUL in a header": framed("x: \x00", f"content-length: {SIZE}"),
    "a stream of half a line": framed(
        "transfer-encoding: chunked", path="/stream", body=b"%x\r\n%s\r\n" % (SIZE, BODY)
    ),
    "a stream without a length": framed(path="/stream"),
}


@pytest.mark.parametrize("case", NEVER_WHOLE)
def test_what_is_never_whole_runs_nothing(target: Target, case: str) -> None:
    """Its frame is broken, so nothing of it counts, and nothing of it is ours to fail at."""
    before = target.stand()
    statuses = exchange(target, NEVER_WHOLE[case])
    assert all(status < 500 for status in statuses)
    assert target.stand() == before


WHOLE = [
    framed(f"content-length: {len(BYSTANDER)}", body=BYSTANDER),
    framed(
        "transfer-encoding: chunked", body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(BYSTANDER), BYSTANDER)
    ),
    framed(
        "transfer-encoding: chunked",
        path="/stream",
        body=b"%x\r\n%s\n\r\n0\r\n\r\n" % (len(BYSTANDER) + 1, BYSTANDER),
    ),
    b"GET /sessions/bystander HTTP/1.1\r\nhost: fuzz\r\n\r\n",
    b"DELETE /sessions/%62ystander HTTP/1.1\r\nhost: fuzz\r\nexpect: 100-continue\r\n\r\n",
    b"GET /models HTTP/1.1\r\nhost: fuzz\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A whole request, or two in a row, with some pieces gone, doubled or replaced."""
    data = b"".join(draw(st.lists(st.sampled_from(WHOLE), min_size=1, max_size=2)))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(start + 6, len(data))))
        between = draw(
            st.sampled_from([b"", b"\r\n", b"\r\n\r\n", b"\x00", b"%", b"%zz", b"//", b"a" * 9_000])
            | st.binary(max_size=4)
        )
        data = data[:start] + between + data[end:]
    return data


@FUZZ
@given(data=damaged())
def test_damaged_requests_never_fail_the_server(target: Target, data: bytes) -> None:
    """Whatever it still understands in them."""
    assert all(status < 500 for status in exchange(target, data))


def test_a_client_that_leaves_after_several_requests_leaves_no_traceback(target: Target) -> None:
    """They run; that nobody is there for a reply is no fault of ours to be logged."""
    for _ in range(20):
        exchange(target, WHOLE[0] + WHOLE[0])
        exchange(target, WHOLE[2] + WHOLE[2])
    assert "Traceback" not in target.server.text()


def test_other_sessions_are_where_they_were(target: Target) -> None:
    """After all of this file."""
    before = target.stand()
    reply = target.client.post("/predict", content=BODY)
    target.note(reply.status_code, json.loads(BODY), reply.json())
    assert target.stand() == before + 1
