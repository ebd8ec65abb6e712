"""A session's record as bytes, the same in every durable store. Never pickle.

Layout, little-endian, no padding:

    format u8 = 1 | birth u64 | step u64 | last.step u64 | last.created u8
    lengths: last.digest u8, model u16, version u16, state u32, last.y u32
    then these five, in this order; model and version in UTF-8
"""

import struct

from service.errors import InternalError
from service.session import LastReply, Record

FORMAT = 1
_HEAD = struct.Struct("<BQQQBBHHII")
HEAD_BYTES = _HEAD.size


def pack_record(record: Record) -> bytes:
    last = record.last
    model, version = record.model.encode(), record.version.encode()
    parts = (last.digest, model, version, record.state, last.y)
    head = _HEAD.pack(
        FORMAT, record.birth, record.step, last.step, last.created, *(len(part) for part in parts)
    )
    return b"".join((head, *parts))


def unpack_record(raw: bytes) -> Record:
    """As `pack_record` wrote it.

    Raises:
        InternalError: of another format, or cut short.
    """
    if len(raw) < HEAD_BYTES or raw[0] != FORMAT:
        raise InternalError(
            f"a stored record of {len(raw)} bytes has format {raw[:1].hex() or 'none'}, expected "
            f"{FORMAT:02x}; it was written by another version of Carousel"
        )
    _, birth, step, last_step, created, *lengths = _HEAD.unpack_from(raw)
    if len(raw) != HEAD_BYTES + sum(lengths):
        raise InternalError(
            f"a stored record has {len(raw)} bytes, expected {HEAD_BYTES + sum(lengths)}"
        )
    parts = []
    at = HEAD_BYTES
    for length in lengths:
        parts.append(raw[at : at + length])
        at += length
    digest, model, version, state, y = parts
    last = LastReply(last_step, digest, y, bool(created))
    return Record(birth, model.decode(), version.decode(), step, state, last)
