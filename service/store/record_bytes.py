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
_LENGTHS = slice(26, 35)  # of the head: of digest, model, version and state


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
    """The records of one version of a model as rows of an array, where they have no key.

    `dtype`: a record up to y, by those of its fields that change from request to request.
    """

    def __init__(self, model: str, version: str, state: "np.dtype[np.void]", header: bytes) -> None:
        """
        Args:
            state: of one session's blob.
            header: the bytes that every such blob begins with.
        """
        names = model.encode() + version.encode()
        digest_at = _HEAD.size
        state_at = digest_at + DIGEST_BYTES + len(names)
        self.size = state_at + state.itemsize
        fields: dict[str, tuple[object, int]] = {
            "step": ("<u8", 9),
            "last_step": ("<u8", 17),
            "flags": ("u1", 25),
            "y_bytes": ("<u4", 35),
            "digest": (f"V{DIGEST_BYTES}", digest_at),
            "state": (state, state_at),
        }
        self.dtype = np.dtype(
            {
                "names": list(fields),
                "formats": [dtype for dtype, _ in fields.values()],
                "offsets": [at for _, at in fields.values()],
                "itemsize": self.size,
            }
        )
        lengths = _HEAD.pack(
            _KEYLESS,
            *(0, 0, 0, 0),
            *(DIGEST_BYTES, len(model.encode()), len(version.encode()), state.itemsize),
            0,
        )[_LENGTHS]
        names_at = slice(digest_at + DIGEST_BYTES, state_at + len(header))
        self._same = [
            (part, np.frombuffer(value, np.uint8))
            for part, value in (
                (slice(0, 1), bytes([_KEYLESS])),
                (_LENGTHS, lengths),
                (names_at, names + header),
            )
        ]

    def are(self, raw: Array) -> Array:
        """Which of (N, size) bytes are such records, up to y: (N,) bool."""
        found = np.ones(len(raw), bool)
        for part, value in self._same:
            found &= (raw[:, part] == value).all(axis=1)
        return found
