"""The binary frames of /ws: bytes <-> requests and replies of many sessions, in either direction.

Layout, little-endian, no gaps; a frame is exactly as long as its parts:

    header   16 bytes   magic 0xCA u8, version 1 u8, kind u8 (1 request, 2 reply), dtype u8,
                        records u32, json_bytes u32, reserved u32 (0)
    heads    one for each record, 24 bytes (request) or 32 (reply):
             request    handle u32, steps u32, step i64, width u32, flags u32 (0)
             reply      handle u32, steps u32, step i64, width u32, status u16, flags u16,
                        frame u32, item u32
    values   for each record, in order, `steps` x `width` numbers of the header's dtype
    json     UTF-8, `json_bytes` long; 0: none

- dtype: 1 float32, 2 int32, 3 int64, 4 float64; replies have 1, or 4 where the request had 4.
- handle: a session's number on this connection, 0 to 65,535, chosen by the client. A request's json
  binds handles to sessions before its records are read, `[{"handle", "session_id", "model"?}, ..]`;
  a handle that is bound again means the new session from then on.
- step of a request: the index of its first row, or -1: none. Of a reply: the index of the next, or
  -1 where the request was refused.
- width: numbers in a row (in one time step); rows of several axes are flattened, the last fastest.
- status: 0, or the HTTP status of an error; such a record has no values, and the next object of
  the reply's json, an array of one object for each such record, in order.
- flags of a reply: 1 created, 2 restarted.
- frame, item: which request is answered; frames of both kinds count from 1, a frame's records from
  0. Where a whole frame could not be read, or no handle is meant, handle is 4,294,967,295.

Pure: no session, no socket. Whatever the bytes, decoding gives a frame or raises FrameError.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from service.errors import FrameError

Array = np.ndarray

MAGIC = 0xCA
VERSION = 1
MAX_HANDLES = 1 << 16  # of one connection: some 30 MB of names at most
NO_HANDLE = (1 << 32) - 1
NO_STEP = -1

HEADER = struct.Struct("<BBBBIII")
REQUEST_HEAD = np.dtype(
    [("handle", "<u4"), ("steps", "<u4"), ("step", "<i8"), ("width", "<u4"), ("flags", "<u4")]
)
REPLY_HEAD = np.dtype(
    [
        ("handle", "<u4"),
        ("steps", "<u4"),
        ("step", "<i8"),
        ("width", "<u4"),
        ("status", "<u2"),
        ("flags", "<u2"),
        ("frame", "<u4"),
        ("item", "<u4"),
    ]
)


class Kind(IntEnum):
    """What a frame holds."""

    REQUEST = 1
    REPLY = 2


class Dtype(IntEnum):
    """What its values are."""

    FLOAT32 = 1
    INT32 = 2
    INT64 = 3
    FLOAT64 = 4

    @property
    def numpy(self) -> np.dtype[Any]:
        return _NUMPY[self]


_NUMPY: dict[Dtype, np.dtype[Any]] = {
    Dtype.FLOAT32: np.dtype("<f4"),
    Dtype.INT32: np.dtype("<i4"),
    Dtype.INT64: np.dtype("<i8"),
    Dtype.FLOAT64: np.dtype("<f8"),
}
_HEADS = {Kind.REQUEST: REQUEST_HEAD, Kind.REPLY: REPLY_HEAD}
_DTYPES = {Kind.REQUEST: tuple(Dtype), Kind.REPLY: (Dtype.FLOAT32, Dtype.FLOAT64)}


class Flag(IntFlag):
    """What a reply says beside y."""

    CREATED = 1  # this request began the session
    RESTARTED = 2  # .. and there was another before


NO_FLAG = Flag(0)


@dataclass(frozen=True, slots=True)
class Binding:
    """What a handle means from now on."""

    handle: int
    session_id: str
    model: str | None = None  # `name` or `name:version`

    def body(self) -> dict[str, object]:
        named = {} if self.model is None else {"model": self.model}
        return {"handle": self.handle, "session_id": self.session_id, **named}


@dataclass(frozen=True, slots=True)
class Send:
    """One request, as a client sends it; x (steps, ...), of the frame's dtype or cast to it."""

    handle: int
    x: Array
    step: int | None = None


@dataclass(frozen=True)
class Frame:
    """A frame that was read; views of its bytes, nothing is copied."""

    dtype: Dtype
    heads: Array  # (records,) REQUEST_HEAD or REPLY_HEAD
    values: Array  # (all of the records' values,)
    json: bytes

    @cached_property
    def starts(self) -> Array:
        """(records + 1,) int64: where the values of each begin, and end."""
        return np.append(0, np.cumsum(_sizes(self.heads).astype(np.int64)))

    @cached_property
    def _starts(self) -> list[int]:
        starts: list[int] = self.starts.tolist()
        return starts

    @cached_property
    def _shapes(self) -> list[tuple[int, int]]:
        return list(zip(self.heads["steps"].tolist(), self.heads["width"].tolist(), strict=True))

    def rows(self, record: int) -> Array:
        """(steps, width): one record's values."""
        part = self.values[self._starts[record] : self._starts[record + 1]]
        return part.reshape(self._shapes[record])


@dataclass(frozen=True, slots=True)
class Reply:
    """One record of a reply frame, in either direction."""

    handle: int
    frame: int  # the request's frame, from 1
    item: int  # its record, from 0
    step: int = NO_STEP  # the index of the next step; none if it was refused
    flags: Flag = NO_FLAG
    y: Array | None = None  # (steps, width), raw units; None: refused
    status: int = 0  # .. with this HTTP status
    error: Mapping[str, Any] | None = None  # .. and this body: {"error": {"code", "message", ..}}


@dataclass(frozen=True, slots=True)
class Replies:
    """Records of a reply frame that are alike: answers of equally many steps."""

    heads: Array  # (n,) REPLY_HEAD
    y: Array  # (n, steps x width), raw units

    def part(self, start: int, end: int) -> "Replies":
        """Some of them."""
        return Replies(self.heads[start:end], self.y[start:end])


def encode_requests(
    sends: Sequence[Send],
    bindings: Sequence[Binding] = (),
    dtype: Dtype = Dtype.FLOAT32,
) -> bytes:
    """One request frame; each `x` is cast to `dtype`."""
    heads = np.zeros(len(sends), REQUEST_HEAD)
    parts: list[bytes] = []
    for head, send in zip(heads, sends, strict=True):
        rows = send.x.reshape(len(send.x), -1) if send.x.size else np.zeros((len(send.x), 0))
        step = NO_STEP if send.step is None else send.step
        head["handle"], head["steps"], head["width"] = send.handle, len(rows), rows.shape[1]
        head["step"] = step
        with np.errstate(over="ignore"):  # infinite in float32: the server refuses it
            parts.append(rows.astype(dtype.numpy).tobytes())
    names = _dump([binding.body() for binding in bindings]) if bindings else b""
    return _join(Kind.REQUEST, dtype, heads, parts, names)


def decode_requests(body: bytes) -> Frame:
    """Read a request frame; FrameError if it is none. Handles and steps are not judged."""
    return _decode(body, Kind.REQUEST)


def encode_replies(replies: Sequence[Reply | Replies], dtype: Dtype = Dtype.FLOAT32) -> bytes:
    """One reply frame; each `y` is cast to `dtype`."""
    heads = np.concatenate(list(_heads(replies)))
    with np.errstate(over="ignore"):  # float64 beyond float32 is infinite there
        parts = [one.y.astype(dtype.numpy).tobytes() for one in replies if one.y is not None]
    errors = [one.error for one in replies if isinstance(one, Reply) and one.status]
    return _join(Kind.REPLY, dtype, heads, parts, _dump(errors) if errors else b"")


def _heads(replies: Sequence[Reply | Replies]) -> Iterator[Array]:
    for kind, run in groupby(replies, type):
        if kind is Replies:
            yield from (one.heads for one in run if isinstance(one, Replies))
        else:
            yield np.array([_head(one) for one in run if isinstance(one, Reply)], REPLY_HEAD)


def _head(reply: Reply) -> tuple[int, ...]:
    y = reply.y
    return (
        reply.handle,
        0 if y is None else len(y),
        reply.step,
        0 if y is None else y.size // len(y),
        reply.status,
        reply.flags,
        reply.frame,
        reply.item,
    )


def decode_replies(body: bytes) -> list[Reply]:
    """The records of a reply frame, in order; FrameError if it is none."""
    frame = _decode(body, Kind.REPLY)
    errors = iter(_errors(frame))
    return [
        Reply(
            handle,
            number,
            item,
            step,
            Flag(flags),
            None if status else frame.rows(record),
            status,
            next(errors) if status else None,
        )
        for record, (handle, _, step, _, status, flags, number, item) in enumerate(
            frame.heads.tolist()
        )
    ]


def _errors(frame: Frame) -> Iterator[Mapping[str, Any]]:
    refused = int(np.count_nonzero(frame.heads["status"]))
    try:
        found = json.loads(frame.json) if frame.json else []
    except (ValueError, RecursionError) as error:
        raise FrameError(f"the frame's json is not JSON: {error}") from error
    if not isinstance(found, list) or len(found) != refused:
        raise FrameError(f"the frame's json is no array of {refused} errors")
    return iter(found)


def _decode(body: bytes, kind: Kind) -> Frame:
    if len(body) < HEADER.size:
        raise FrameError(
            f"the frame has {len(body)} bytes, expected a header of {HEADER.size}",
            got=len(body),
            expected=HEADER.size,
        )
    magic, version, found, dtype_code, records, json_bytes, reserved = HEADER.unpack_from(body)
    if (magic, version) != (MAGIC, VERSION):
        raise FrameError(
            f"the frame begins with bytes {magic:#04x} {version}, expected {MAGIC:#04x} {VERSION}: "
            "version 1 of the layout"
        )
    if found != kind:
        raise FrameError(f"the frame is of kind {found}, expected {kind.value}")
    if reserved:
        raise FrameError(f"the header's last field is {reserved}, expected 0")
    if dtype_code not in _DTYPES[kind]:
        known = ", ".join(f"{dtype.value} ({dtype.name.lower()})" for dtype in _DTYPES[kind])
        raise FrameError(f"the dtype is {dtype_code}, expected one of {known}")
    dtype = Dtype(dtype_code)
    head = _HEADS[kind]
    values_at = HEADER.size + records * head.itemsize
    if values_at > len(body):
        raise _wrong_size(body, values_at, "or more")
    heads = np.frombuffer(body, head, records, HEADER.size)
    # A product of two 32-bit numbers fits into 64 bits; a sum of several only if each is small.
    sizes = _sizes(heads)
    if records and int(sizes.max()) > len(body):
        place = int(sizes.argmax())
        raise FrameError(
            f"record {place} has {sizes[place]} values by its head, steps x width, in a frame of "
            f"{len(body)} bytes",
            item=place,
        )
    count = int(sizes.sum())
    json_at = values_at + count * dtype.numpy.itemsize
    if json_at + json_bytes != len(body):
        raise _wrong_size(body, json_at + json_bytes, "by its header and heads")
    values = np.frombuffer(body, dtype.numpy, count, values_at)
    return Frame(dtype, heads, values, body[json_at:])


def _wrong_size(body: bytes, expected: int, how: str) -> FrameError:
    return FrameError(
        f"the frame has {len(body)} bytes, expected {expected} {how}",
        got=len(body),
        expected=expected,
    )


def _sizes(heads: Array) -> Array:
    return np.asarray(heads["steps"].astype(np.uint64) * heads["width"])


def _join(kind: Kind, dtype: Dtype, heads: Array, parts: Sequence[bytes], names: bytes) -> bytes:
    header = HEADER.pack(MAGIC, VERSION, kind, dtype, len(heads), len(names), 0)
    return b"".join([header, heads.tobytes(), *parts, names])


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
