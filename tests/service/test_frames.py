"""The layout of binary frames: both directions, and whatever bytes come."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import FrameError
from service.protocols.frames import (
    HEADER,
    MAGIC,
    NO_HANDLE,
    REPLY_HEAD,
    REQUEST_HEAD,
    Binding,
    Dtype,
    Flag,
    Kind,
    Reply,
    Send,
    decode_replies,
    decode_requests,
    encode_replies,
    encode_requests,
)

Array = np.ndarray

PURE = settings(derandomize=True, database=None, max_examples=300)


def test_a_request_frame_byte_by_byte() -> None:
    """As the table says, written down here by hand."""
    made = encode_requests(
        [Send(7, np.array([[1.0, 2.0], [3.0, 4.0]]), step=5), Send(0, np.array([[0.5]]))],
        [Binding(7, "pump-7"), Binding(0, "é", "sine-cell")],
    )
    names = (
        '[{"handle":7,"session_id":"pump-7"},{"handle":0,"session_id":"é","model":"sine-cell"}]'
    ).encode()
    by_hand = struct.pack("<BBBBIII", 0xCA, 1, 1, 1, 2, len(names), 0)
    by_hand += struct.pack("<IIqII", 7, 2, 5, 2, 0)
    by_hand += struct.pack("<IIqII", 0, 1, -1, 1, 0)
    by_hand += struct.pack("<5f", 1, 2, 3, 4, 0.5)
    assert made == by_hand + names


def test_a_reply_frame_byte_by_byte() -> None:
    """An answer and a refusal."""
    error = {"error": {"code": "step_conflict", "message": "no"}}
    made = encode_replies(
        [
            Reply(7, frame=3, item=0, step=9, flags=Flag.CREATED, y=np.array([[1.5], [2.5]])),
            Reply(8, frame=3, item=1, status=409, error=error),
        ]
    )
    refusals = b'[{"error":{"code":"step_conflict","message":"no"}}]'
    by_hand = struct.pack("<BBBBIII", 0xCA, 1, 2, 1, 2, len(refusals), 0)
    by_hand += struct.pack("<IIqIHHII", 7, 2, 9, 1, 0, 1, 3, 0)
    by_hand += struct.pack("<IIqIHHII", 8, 0, -1, 0, 409, 0, 3, 1)
    by_hand += struct.pack("<2f", 1.5, 2.5)
    assert made == by_hand + refusals
    answer, refusal = decode_replies(made)
    assert (answer.handle, answer.frame, answer.item, answer.step) == (7, 3, 0, 9)
    assert answer.y is not None and answer.y.tolist() == [[1.5], [2.5]]
    assert (refusal.status, refusal.error, refusal.y) == (409, error, None)


def test_heads_have_no_gaps() -> None:
    """The sizes that the layout names; values of 8 bytes are aligned after any number of heads."""
    assert (HEADER.size, REQUEST_HEAD.itemsize, REPLY_HEAD.itemsize) == (16, 24, 32)


arrays = st.integers(0, 5).flatmap(
    lambda steps: st.integers(1, 3).flatmap(
        lambda width: st.lists(
            st.integers(-(2**31), 2**31 - 1), min_size=steps * width, max_size=steps * width
        ).map(lambda flat: np.array(flat, np.float64).reshape(steps, width))
    )
)
sends = st.lists(
    st.builds(
        Send,
        st.integers(0, NO_HANDLE),
        arrays,
        st.none() | st.integers(0, 2**63 - 1),
    ),
    max_size=6,
)


@PURE
@given(sent=sends, dtype=st.sampled_from([Dtype.INT32, Dtype.INT64, Dtype.FLOAT64]))
def test_requests_come_back_as_they_were(sent: list[Send], dtype: Dtype) -> None:
    """Any number of records, of any sizes."""
    frame = decode_requests(encode_requests(sent, dtype=dtype))
    assert (frame.dtype, frame.json) == (dtype, b"")
    for record, one in enumerate(sent):
        head = frame.heads[record]
        assert head["handle"] == one.handle
        assert head["step"] == (-1 if one.step is None else one.step)
        assert frame.rows(record).tolist() == one.x.tolist()


def test_float32_is_not_rounded_again_and_float64_not_at_all() -> None:
    """Bits in, the same bits out."""
    x = np.array([[0.1], [1 / 3], [1e-40], [np.nan], [-0.0]], np.float32)
    frame = decode_requests(encode_requests([Send(0, x)]))
    assert frame.rows(0).tobytes() == x.tobytes()
    y = np.array([[0.1], [1e300]])
    (narrow,) = decode_replies(encode_replies([Reply(0, 1, 0, 2, y=y)]))
    (wide,) = decode_replies(encode_replies([Reply(0, 1, 0, 2, y=y)], Dtype.FLOAT64))
    assert narrow.y is not None and narrow.y.tolist() == [[float(np.float32(0.1))], [np.inf]]
    assert wide.y is not None and wide.y.tolist() == y.tolist()


def test_rows_of_several_axes_are_flattened() -> None:
    """And ids, which have none, are one wide."""
    x = np.arange(12.0).reshape(2, 2, 3)
    frame = decode_requests(encode_requests([Send(0, x), Send(1, np.array([4, 5]))]))
    assert frame.rows(0).tolist() == x.reshape(2, 6).tolist()
    assert frame.rows(1).tolist() == [[4], [5]]


GOOD = encode_requests([Send(1, np.ones((2, 3))), Send(2, np.ones((1, 1)))], [Binding(1, "a")])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "0 bytes, expected a header of 16"),
        (GOOD[:15], "15 bytes"),
        (b"\x00" + GOOD[1:], "begins with bytes 0x00 1"),
        (GOOD[:1] + b"\x02" + GOOD[2:], "begins with bytes 0xca 2"),
        (GOOD[:2] + b"\x02" + GOOD[3:], "kind 2, expected 1"),
        (GOOD[:3] + b"\x05" + GOOD[4:], "dtype is 5"),
        (GOOD[:12] + b"\x01" + GOOD[13:], "last field is 1"),
        (GOOD + b"\x00", "by its header and heads"),
        (GOOD[:-1], "by its header and heads"),
        (GOOD[:40], "expected 64 or more"),
        (HEADER.pack(MAGIC, 1, 1, 1, 2**32 - 1, 0, 0), "or more"),
        (HEADER.pack(MAGIC, 1, 1, 1, 0, 2**32 - 1, 0), "by its header"),
    ],
)
def test_what_is_no_frame_is_refused(body: bytes, says: str) -> None:
    """With what came and what was expected."""
    with pytest.raises(FrameError, match=says):
        decode_requests(body)


def test_sizes_that_overflow_are_refused() -> None:
    """Products and sums beyond 64 bits wrap to nothing; the frame does not grow by that."""
    most = 2**32 - 1
    heads = np.array([(0, most, -1, most, 0), (0, 2, -1, most, 0)] * 2, REQUEST_HEAD)
    body = HEADER.pack(MAGIC, 1, Kind.REQUEST, Dtype.FLOAT64, len(heads), 0, 0) + heads.tobytes()
    with pytest.raises(FrameError, match=f"record 0 has {most * most} values by its head"):
        decode_requests(body)


@PURE
@given(
    start=st.integers(0, len(GOOD)),
    cut=st.integers(0, 40),
    between=st.binary(max_size=40),
)
def test_a_damaged_frame_is_refused_or_is_one(start: int, cut: int, between: bytes) -> None:
    """Nothing but FrameError is raised, and no record reaches over the frame's end."""
    for decode in (decode_requests, decode_replies):
        try:
            decode(GOOD[:start] + between + GOOD[start + cut :])
        except FrameError:
            continue


@PURE
@given(body=st.binary(max_size=120), kind=st.sampled_from([1, 2]), records=st.integers(0, 3))
def test_any_bytes_behind_a_header(body: bytes, kind: int, records: int) -> None:
    """The same of heads that say anything."""
    for json_bytes in (0, len(body)):
        made = HEADER.pack(MAGIC, 1, kind, 1, records, json_bytes, 0) + body
        try:
            if kind == Kind.REPLY:
                decode_replies(made)
            else:
                frame = decode_requests(made)
                assert sum(frame.rows(n).size for n in range(records)) == len(frame.values)
        except FrameError:
            continue


def test_replies_whose_errors_do_not_fit_are_refused() -> None:
    """One JSON object for each record that was refused."""
    good = encode_replies([Reply(1, 1, 0, status=400, error={"error": {}})])
    assert good.endswith(b'[{"error":{}}]')
    for bad in (b'[{"error":{},', b"[1,2]        ", b'{"a":{"b":1}}'):
        with pytest.raises(FrameError, match="json"):
            decode_replies(good[: -len(b'[{"error":{}}]')] + bad.ljust(14))
