"""The states of many sessions as stacked arrays, and each as safetensors bytes."""

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from service.errors import ArtifactError
from service.manifest import StatePort

Array = np.ndarray
State = dict[str, Array]  # state name -> (B, ...) array

SAFETENSORS_DTYPES = {"float32": "F32", "int64": "I64"}


class StateLayout:
    """The states of one model as one safetensors blob per session.

    The safetensors header of a model never changes, so a blob is that header, then the raw
    little-endian values, and a batch of blobs is read as one structured array: stacking B
    states costs one join and one copy per state port, whatever B is. A blob alone is cut and
    joined as bytes: a structured array of one row takes five times as long.
    """

    def __init__(self, states: Sequence[StatePort]) -> None:
        # safetensors orders tensors by alignment, then by name (its spec leaves it open; its
        # own writer does so): int64 before float32.
        self.ports = sorted(states, key=lambda s: (-np.dtype(s.dtype).itemsize, s.name))
        self.header = self._make_header()
        self.row = np.dtype(  # one session's blob
            [("header", f"V{len(self.header)}")]
            + [(s.name, np.dtype(s.dtype).newbyteorder("<"), self._shape(s)) for s in self.ports]
        )
        self._places = [  # of each state in a blob
            (
                s.name,
                np.dtype(s.dtype).newbyteorder("<"),
                np.dtype(s.dtype),
                math.prod(self._shape(s)),
                at,
                (1, *self._shape(s)),
            )
            for s, at in zip(self.ports, self._offsets(), strict=True)
        ]

    @staticmethod
    def _shape(port: StatePort) -> tuple[int, ...]:
        return tuple(int(dim) for dim in port.shape[1:])

    def _offsets(self) -> list[int]:
        """Where each state begins in a blob."""
        sizes = [math.prod(self._shape(s)) * np.dtype(s.dtype).itemsize for s in self.ports]
        return [len(self.header) + sum(sizes[:n]) for n in range(len(sizes))]

    def _make_header(self) -> bytes:
        entries: dict[str, object] = {}
        offset = 0
        for port in self.ports:
            size = int(np.prod(self._shape(port))) * np.dtype(port.dtype).itemsize
            entries[port.name] = {
                "dtype": SAFETENSORS_DTYPES[port.dtype],
                "shape": list(self._shape(port)),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the spec aligns the data at 8 bytes with spaces
        return len(text).to_bytes(8, "little") + text

    @property
    def size(self) -> int:
        """Bytes of one session's blob."""
        return self.row.itemsize

    def zeros(self) -> State:
        """One row of zeros: name -> (1, ...)."""
        return {s.name: np.zeros((1, *self._shape(s)), s.dtype) for s in self.ports}

    def pack(self, state: State) -> list[bytes]:
        """name -> (B, ...) arrays -> B blobs, each a valid safetensors file."""
        if len(next(iter(state.values()))) == 1:
            return [self.join({s.name: _little_endian(state[s.name]) for s in self.ports})]
        raw = self.pack_rows(state).tobytes()
        return [raw[i : i + self.size] for i in range(0, len(raw), self.size)]

    def pack_rows(self, state: State) -> Array:
        """name -> (B, ...) arrays -> (B,) blobs, as one array of `row`."""
        batch = len(next(iter(state.values())))
        rows = np.empty(batch, self.row)
        rows["header"] = np.frombuffer(self.header, self.row["header"])[0]
        for port in self.ports:
            rows[port.name] = state[port.name]
        return rows

    def join(self, values: Mapping[str, bytes]) -> bytes:
        """One session's blob from the raw little-endian values of each state."""
        return b"".join([self.header, *(values[port.name] for port in self.ports)])

    def unpack(self, blobs: Sequence[bytes]) -> State:
        """B blobs -> name -> (B, ...) arrays, fresh and contiguous.

        Raises:
            ArtifactError: a blob is not of this layout. Its session belongs to another model.
        """
        for blob in blobs:
            if len(blob) != self.size or not blob.startswith(self.header):
                raise ArtifactError(
                    f"a stored state of {len(blob)} bytes does not fit this model's state ports, "
                    f"expected {self.size} bytes; drop the session"
                )
        if len(blobs) == 1:
            return {
                name: np.frombuffer(blobs[0], dtype, count, at).reshape(shape).astype(native)
                for name, dtype, native, count, at, shape in self._places
            }
        return self.unpack_rows(np.frombuffer(b"".join(blobs), self.row))

    def unpack_rows(self, rows: Array) -> State:
        """(B,) blobs of `row`, whose headers are right -> name -> (B, ...), fresh, contiguous."""
        return {s.name: np.ascontiguousarray(rows[s.name].astype(s.dtype)) for s in self.ports}


def _little_endian(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
