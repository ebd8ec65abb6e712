"""Compressed bodies, message by message."""

import asyncio
import gzip
import zlib
from collections.abc import Iterable

import pytest

from service.errors import BadEncodingError, TooLongError, UnsupportedEncodingError
from service.protocols.asgi import Message, Receive, read_body
from service.protocols.content_coding import (
    IN_A_THREAD_BYTES,
    MIN_BYTES,
    PIECE_BYTES,
    accepts_gzip,
    decoded,
    gzipped,
    is_worth_it,
)

LIMIT = 1 << 20
TEXT = b'{"session_id": "s", "x": [[0.5], [0.25]]}\n' * 200


def coming(parts: Iterable[bytes]) -> Receive:
    """The parts as a client sends them, and then it leaves."""
    messages: list[Message] = [
        {"type": "http.request", "body": part, "more_body": True} for part in parts
    ]
    messages[-1]["more_body"] = False

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    return receive


def read(parts: Iterable[bytes], coding: bytes = b"gzip", limit: int = LIMIT) -> bytes:
    scope = {"headers": [(b"content-encoding", coding)]}

    async def whole() -> bytes:
        receive = decoded(scope, coming(parts), limit)
        body = await read_body(scope, receive, limit)
        assert (await receive())["type"] == "http.disconnect"
        return body

    return asyncio.run(whole())


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[n : n + size] for n in range(0, len(body), size)]


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_a_body_comes_out_as_it_was_however_it_is_cut(size: int) -> None:
    """gzip, the same by its old name, and deflate; empty parts do not matter."""
    assert read(cut(gzip.compress(TEXT), size)) == TEXT
    assert read([b"", *cut(gzip.compress(TEXT), size), b""], b" X-GZIP ") == TEXT
    assert read(cut(zlib.compress(TEXT), size), b"deflate") == TEXT


def test_no_coding_is_no_work() -> None:
    """`identity` is none."""
    receive = coming([b"x"])
    assert decoded({"headers": []}, receive, LIMIT) is receive
    assert decoded({"headers": [(b"content-encoding", b"identity")]}, receive, LIMIT) is receive


def test_several_members_are_one_body_and_no_byte_is_none() -> None:
    """RFC 1952: `cat a.gz b.gz` is a gzip file; a POST without a body may still name a coding."""
    both = gzip.compress(TEXT) + gzip.compress(b"") + gzip.compress(b"more")
    for size in (1, 64, len(both)):
        assert read(cut(both, size)) == TEXT + b"more"
    assert read([b""]) == b""


def test_output_that_waits_inside_the_decoder_is_not_forgotten() -> None:
    """All input of a run of zeros can be taken before its output is read; who sent it may now wait
    for the answer to that output."""
    size = PIECE_BYTES + 209
    packed = gzip.compress(bytes(size))
    scope = {"headers": [(b"content-encoding", b"gzip")]}
    sent: list[Message] = [{"type": "http.request", "body": packed[:-8], "more_body": True}]

    async def client() -> Message:
        return sent.pop(0)  # IndexError: asked for more before all was given

    async def come_out() -> int:
        receive = decoded(scope, client, LIMIT)
        return len((await receive())["body"]) + len((await receive())["body"])

    assert asyncio.run(come_out()) == size
    assert read([gzip.compress(bytes(PIECE_BYTES * 3))]) == bytes(PIECE_BYTES * 3)


@pytest.mark.parametrize(
    ("parts", "coding", "why"),
    [
        ([b"{}"], b"gzip", "not gzip, as its Content-Encoding says: Error -3"),
        ([gzip.compress(TEXT)[:-1]], b"gzip", "it ends in the middle"),
        ([gzip.compress(TEXT)[:40]], b"gzip", "it ends in the middle"),
        ([gzip.compress(TEXT) + b"{}"], b"gzip", "Error -3"),
        ([gzip.compress(TEXT)], b"deflate", "not deflate"),
    ],
)
def test_a_damaged_body_is_refused(parts: list[bytes], coding: bytes, why: str) -> None:
    """Whatever of it could be read."""
    with pytest.raises(BadEncodingError, match=why):
        read(parts, coding)


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"\xff"])
def test_another_coding_is_refused_before_anything_is_read(coding: bytes) -> None:
    """The error says which there are."""
    with pytest.raises(UnsupportedEncodingError, match="expected gzip, deflate") as caught:
        read([TEXT], coding)
    assert caught.value.data["expected"] == ["gzip", "deflate"]


def test_a_bomb_costs_no_more_than_the_limit() -> None:
    """A gigabyte in a megabyte is cut off after one piece too many."""
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(200)) + bomb.flush()
    assert len(packed) < 300_000
    scope = {"headers": [(b"content-encoding", b"gzip")]}
    with pytest.raises(TooLongError) as caught:
        asyncio.run(read_body(scope, decoded(scope, coming([packed]), LIMIT), LIMIT))
    assert isinstance(caught.value.data["got"], int)
    assert caught.value.data["got"] <= LIMIT + PIECE_BYTES


def test_a_stream_may_grow_with_what_is_sent_and_no_further() -> None:
    """Nobody counts the bytes of a stream but the decoder: a hundred times what came."""
    packed = gzip.compress(b"\n" * (50 * LIMIT))
    scope = {"headers": [(b"content-encoding", b"gzip")]}

    async def drink() -> int:
        receive, size, turns = decoded(scope, coming([packed]), LIMIT), 0, 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        task = asyncio.create_task(others())
        try:
            while True:
                size += len((await receive())["body"])
        except TooLongError:
            task.cancel()
            assert turns >= size // PIECE_BYTES - 1  # each piece lets the others have their turn
            return size

    assert asyncio.run(drink()) <= max(LIMIT, 100 * len(packed)) + PIECE_BYTES


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [
        (b"gzip", True),
        (b"br, GZIP;q=0.5", True),
        (b"*", True),
        (b"*;q=0, gzip", True),
        (b"gzip;q=0", False),
        (b"gzip;q=0.000, *", False),
        (b"identity", False),
        (b"", False),
    ],
)
def test_who_takes_gzip(accepted: bytes, takes: bool) -> None:
    """RFC 9110: `*` is all that is not named, and a weight of 0 is a no."""
    assert accepts_gzip([(b"accept-encoding", accepted)]) is takes
    assert not accepts_gzip([])


def test_what_is_worth_it() -> None:
    """Whole JSON of some size; neither streams nor files nor what is compressed already."""
    size = (b"content-length", str(MIN_BYTES).encode())
    assert is_worth_it([(b"content-type", b"application/json"), size])
    assert not is_worth_it([(b"content-type", b"application/json"), (size[0], b"16383")])
    assert not is_worth_it([(b"content-type", b"application/json")])
    assert not is_worth_it([(b"content-type", b"application/octet-stream"), size])
    assert not is_worth_it(
        [(b"content-type", b"application/json"), size, (b"content-encoding", b"br")]
    )


def test_the_same_body_gives_the_same_bytes() -> None:
    """Of a retried request too; long ones in a thread."""
    for body in (TEXT, TEXT * (IN_A_THREAD_BYTES // len(TEXT) + 1)):
        first, second = (asyncio.run(gzipped(body)) for _ in range(2))
        assert first == second
        assert gzip.decompress(first) == body
