"""Frames of /ws that are not what they should be: each is refused by itself, and no more."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.client import ClientConnection

from service.errors import FrameError
from service.protocols.frames import (
    HEADER,
    MAGIC,
    NO_HANDLE,
    REQUEST_HEAD,
    Binding,
    Dtype,
    Reply,
    Send,
    decode_requests,
    encode_requests,
)
from tests.e2e.ws_client import connected, records_in
from tests.fuzz.conftest import FUZZ, VICTIM, Target
from tests.fuzz.test_ndjson import OURS, anything, line, lines

HANDLE = 3  # of the victim


class Wire:
    """A connection that counts its frames, as the server does."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.frames = 0

    def send(self, frame: str | bytes) -> int:
        """Send a frame; its number."""
        self.connection.send(frame)
        self.frames += 1
        return self.frames

    def recv(self) -> str | bytes:
        return self.connection.recv(timeout=30)


@pytest.fixture(scope="module")
def wire(target: Target) -> Iterator[Wire]:
    """One connection for all: no frame may end it."""
    with connected(target.server) as connection:
        wire = Wire(connection)
        wire.send(encode_requests([], [Binding(HANDLE, VICTIM), Binding(0, "bystander")]))
        yield wire


def is_text(frame: bytes) -> bool:
    """Whether a WebSocket can carry it as text at all."""
    try:
        frame.decode()
        return len(frame) < 15_000
    except UnicodeDecodeError:
        return False


texts = st.one_of(
    lines.filter(is_text).map(bytes.decode),
    st.lists(anything, max_size=3).map(json.dumps),
    st.lists(st.sampled_from([line().decode(), line("[[1], [2]]").decode(), "3", "{}", "[]"])).map(
        lambda bodies: "[" + ",".join(bodies) + "]"
    ),
    st.builds(
        lambda name: line("[[0.5]]", f', "id": {name}').decode(),
        st.sampled_from(["0", "-1", "1e400", "1" * 30, '"' + "x" * 300 + '"', '"a"', "null", "{}"]),
    ),
    st.text(max_size=30),
    st.sampled_from(["", " ", "\x00", "\ufeff" + line().decode(), '{"api_key": "x"}', "[" * 9_000]),
)


@FUZZ
@given(sent=st.lists(texts, min_size=1, max_size=6))
def test_bad_texts_are_refused_one_by_one(target: Target, wire: Wire, sent: list[str]) -> None:
    """None of the refusals is ours to be ashamed of; the oracle replays what was run."""
    numbers = [wire.send(text) for text in sent]
    asked = {
        (number, item): body
        for number, text in zip(numbers, sent, strict=True)
        for item, body in bodies_of(text)
    }
    last = wire.send(line(more=', "id": "last"').decode())
    asked[last, None] = line()
    replies: list[dict[str, Any]] = []
    while not replies or replies[-1].get("id") != "last":
        replies.append(json.loads(wire.recv()))
    for reply in replies:
        if "error" in reply:
            assert reply["error"]["code"] not in OURS
            for key in [key for key in asked if is_named(key, reply)]:
                del asked[key]
    done = [reply for reply in replies if reply.get("session_id") == VICTIM and "y" in reply]
    mine = [request for body in asked.values() if (request := read(body)) is not None]
    for request, reply in zip(mine, done, strict=True):
        target.note(200, request, reply)


def bodies_of(text: str) -> list[tuple[int | None, bytes]]:
    """The bodies of a text frame, each with its item, None where it is no array."""
    if not text.lstrip(" \t\r\n").startswith("["):
        return [(None, text.encode())]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [(item, json.dumps(one).encode()) for item, one in enumerate(found)]


def is_named(key: tuple[int, int | None], refusal: dict[str, Any]) -> bool:
    """Whether a refusal is that of a body; one without an item is that of a whole frame."""
    return refusal["frame"] == key[0] and refusal.get("item", key[1]) == key[1]


def read(body: bytes) -> dict[str, Any] | None:
    """What a body that was run asked of the victim; None of any other session."""
    found: dict[str, Any] = json.loads(body)
    return found if found["session_id"] == VICTIM else None


GOOD = encode_requests([Send(HANDLE, np.array([[0.5]])), Send(HANDLE, np.array([[1.0], [2.0]]))])
NUMBERS = [0, 1, 2, HANDLE, 77, 65_535, 65_536, 2**31, NO_HANDLE]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good frame with a piece of it gone, doubled, or other bytes in its place."""
    start = draw(st.integers(0, len(GOOD)))
    end = draw(st.integers(start, min(start + 8, len(GOOD))))
    return GOOD[:start] + draw(st.binary(max_size=8)) + GOOD[end:]


heads = st.lists(
    st.tuples(
        st.sampled_from(NUMBERS),
        st.sampled_from([0, 1, 2, 2**31, NO_HANDLE]),
        st.sampled_from([-(2**63), -2, -1, 0, 7, 2**63 - 1]),
        st.sampled_from([0, 1, 2, 2**31, NO_HANDLE]),
        st.sampled_from([0, 0, 0, 1, NO_HANDLE]),
    ),
    max_size=4,
)
values = st.lists(
    st.sampled_from([0.5, -0.0, float("nan"), float("inf"), 3e38, 1e-45]), max_size=8
).map(lambda found: np.array(found, np.float32).tobytes())
names = st.one_of(
    st.just(b""),
    st.binary(max_size=12),
    st.lists(anything, max_size=2).map(lambda found: json.dumps(found).encode()),
    st.builds(
        lambda handle, name: json.dumps([{"handle": handle, "session_id": name}]).encode(),
        st.sampled_from([1, -1, 2**64, 65_536, 1.0, "1"]),
        st.sampled_from(["", "a", 3, None, "x" * 257]),
    ),
)
made_up = st.builds(
    lambda heads, values, names, dtype, more: (
        HEADER.pack(MAGIC, 1, 1, dtype, len(heads) + more, len(names), 0)
        + np.array(heads, REQUEST_HEAD).tobytes()
        + values
        + names
    ),
    heads,
    values,
    names,
    st.sampled_from([1, 1, 1, 2, 3, 4, 0, 5]),
    st.sampled_from([0, 0, 0, 1, 2**31]),
)


@st.composite
def well_formed(draw: st.DrawFn) -> bytes:
    """A frame that is one, whatever its records ask for."""
    rows = st.lists(
        st.sampled_from([0.5, -1.0, float("nan"), float("-inf"), 1e300]), min_size=1, max_size=4
    )
    sends = [
        Send(
            draw(st.sampled_from([HANDLE, HANDLE, 0, 9])),
            np.array(draw(rows)).reshape(-1, draw(st.sampled_from([1, 1, 1, 0])) or 1),
            draw(st.sampled_from([None, None, 0, 7])),
        )
        for _ in range(draw(st.integers(0, 4)))
    ]
    dtype = draw(st.sampled_from([Dtype.FLOAT32, Dtype.FLOAT64]))
    return encode_requests(sends, dtype=dtype)


@FUZZ
@given(
    sent=st.lists(
        st.one_of(well_formed(), damaged(), made_up, st.binary(max_size=60)), min_size=1, max_size=5
    )
)
def test_bad_frames_are_refused_one_by_one(target: Target, wire: Wire, sent: list[bytes]) -> None:
    """One record for each, or one for the frame; the oracle replays what was run."""
    frames = {wire.send(body): body for body in [*sent, GOOD]}
    last = wire.frames, 1
    replies: dict[tuple[int, int], Reply] = {}
    while last not in replies:
        for reply in records_in(wire.recv()):
            assert (reply.frame, reply.item) not in replies
            assert reply.status < 500, reply.error
            replies[reply.frame, reply.item] = reply
    for (number, item), reply in sorted(replies.items()):
        if number in frames and reply.status == 0 and reply.handle == HANDLE:
            x = decode_requests(frames[number]).rows(item).astype(float).tolist()
            assert reply.y is not None
            y = [[float(str(value)) for value in row] for row in reply.y.astype(np.float32)]
            target.note(200, {"x": x}, {"step": reply.step, "y": y})
    for number, body in frames.items():
        told = {item for frame, item in replies if frame == number}
        assert told == {0} or told >= victims_in(body), body


def victims_in(body: bytes) -> set[int]:
    """The records of a frame that are answered before what is sent to the victim later."""
    try:
        heads = decode_requests(body).heads
    except FrameError:
        return {0}
    return set(np.flatnonzero(heads["handle"] == HANDLE).tolist())
