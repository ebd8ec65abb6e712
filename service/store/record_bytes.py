"""A session's record as bytes, the same in every durable store. Never pickle.

Layout, little-endian, no padding:

    format u8 | birth u64 | step u64 | last.step u64 | last's flags u8
    lengths: last.digest u8, model u16, version u16, state u32, last.y u32
    of format 2: last.key_digest, 16 bytes
    then these five, in this order; model and version in UTF-8

Flags: 1 created, 2 restarted. A record without a key is of format 1, which every Carousel reads; so
servers of the version before can share a store with this one until the first key is sent.

`RecordRows` is the same layout for many records of one model at once, as rows of one array.
"""

import struct

import numpy as np

from service.errors import InternalError
from service.session import DIGEST_BYTES, LastReply, Record

Array = np.ndarray

FORMAT = 2  # the newest
_KEYLESS, _KEYED = 1, FORMAT
_HEAD = struct.Struct("<BQQQBBHHII")
_KEY_BYTES = {_KEYLESS: 0, _KEYED: 16}
_CREATED, _RESTARTED = 1, 2


def pack_record(record: Record) -> bytes:
    last = record.last
    model, version = record.model.encode(), record.version.encode()
    parts = (last.digest, model, version, record.state, last.y)
    head = _HEAD.pack(
        _KEYED if last.key_digest else _KEYLESS,
        record.birth,
        record.step,
        last.step,
        _CREATED * last.created | _RESTARTED * last.restarted,
        *(len(part) for part in parts),
    )
    return b"".join((head, last.key_digest, *parts))


def unpack_record(raw: bytes) -> Record:
    """As `pack_record` wrote it.

    Raises:
        InternalError: of another format, or cut short.
    """
    if len(raw) < _HEAD.size or raw[0] not in _KEY_BYTES:
        raise InternalError(
            f"a stored record of {len(raw)} bytes has format {raw[:1].hex() or 'none'}, expected "
            f"at most {FORMAT:02x}; it was written by another version of Carousel"
        )
    form, birth, step, last_step, flags, *lengths = _HEAD.unpack_from(raw)
    lengths = [_KEY_BYTES[form], *lengths]
    if len(raw) != _HEAD.size + sum(lengths):
        raise InternalError(
            f"a stored record has {len(raw)} bytes, expected {_HEAD.size + sum(lengths)}"
        )
    parts = []
    at = _HEAD.size
    for length in lengths:
        parts.append(raw[at : at + length])
        at += length
    key_digest, digest, model, version, state, y = parts
    is_created, is_restarted = bool(flags & _CREATED), bool(flags & _RESTARTED)
    last = LastReply(last_step, digest, y, is_created, is_restarted, key_digest)
    return Record(birth, model.decode(), version.decode(), step, state, last)


class RecordRows:
    """The records of one version of a model as rows of an array: those without a key.

    `head`: a record up to its names, by those of its fields that change from request to request.
    `state`: a blob, at `state_at`; y comes after it, at `size`.
    """

    def __init__(self, model: str, version: str, state: "np.dtype[np.void]", header: bytes) -> None:
        """
        Args:
            state: of one session's blob.
            header: the bytes that every such blob begins with.
        """
        self._model, self._version, self._header = model, version, header
        self.head = np.dtype(
            {
                "names": ["step", "last_step", "flags", "y_bytes", "digest"],
                "formats": ["<u8", "<u8", "u1", "<u4", f"V{DIGEST_BYTES}"],
                "offsets": [9, 17, 25, 35, _HEAD.size],
                "itemsize": _HEAD.size + DIGEST_BYTES,
            }
        )
        self.state = state
        self.state_at = self.head.itemsize + len(model.encode()) + len(version.encode())
        self.size = self.state_at + state.itemsize

    def has(self, record: Record) -> bool:
        """Whether it is one of these records."""
        last = record.last
        return (
            (record.model, record.version) == (self._model, self._version)
            and len(record.state) == self.state.itemsize
            and record.state.startswith(self._header)
            and len(last.digest) == DIGEST_BYTES
            and not last.key_digest
        )
