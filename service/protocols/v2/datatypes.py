"""The datatypes of v2 tensors, and their bytes.

Bytes are little-endian, row-major, without gaps; an element of BYTES is its length as uint32, then
the bytes themselves. numpy has no bfloat16: BF16 is read as the float32 with the same upper half.
"""

import struct
from array import array as floats
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from service.errors import RequestError, ShapeError

Array = np.ndarray

MAX_RANK = 8  # (B, T, ...) has two or three; numpy stops at 64
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Datatype:
    """One of the datatypes of a tensor."""

    name: str
    dtype: np.dtype[Any]  # of the array that holds such a tensor; object: bytes
    size: int | None  # bytes of an element; None: it says so itself

    @property
    def config_name(self) -> str:
        """What a model configuration calls it."""
        return "TYPE_STRING" if self.name == "BYTES" else f"TYPE_{self.name}"


DATATYPES = {
    datatype.name: datatype
    for datatype in (
        Datatype("BOOL", np.dtype("?"), 1),
        Datatype("UINT8", np.dtype("u1"), 1),
        Datatype("UINT16", np.dtype("<u2"), 2),
        Datatype("UINT32", np.dtype("<u4"), 4),
        Datatype("UINT64", np.dtype("<u8"), 8),
        Datatype("INT8", np.dtype("i1"), 1),
        Datatype("INT16", np.dtype("<i2"), 2),
        Datatype("INT32", np.dtype("<i4"), 4),
        Datatype("INT64", np.dtype("<i8"), 8),
        Datatype("FP16", np.dtype("<f2"), 2),
        Datatype("FP32", np.dtype("<f4"), 4),
        Datatype("FP64", np.dtype("<f8"), 8),
        Datatype("BF16", np.dtype("<f4"), 2),
        Datatype("BYTES", np.dtype(object), None),
    )
}
_CODES = {"FP32": "f", "FP64": "d"}  # of Python's own arrays of floats
OF_PORTS = {"float32": "FP32", "int64": "INT64"}  # a manifest's dtypes


def find_datatype(name: str) -> Datatype:
    """RequestError if there is none of that name."""
    try:
        return DATATYPES[name]
    except KeyError:
        raise RequestError(
            f"there is no datatype `{name}`, expected one of {', '.join(DATATYPES)}"
        ) from None


def check_shape(tensor: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a tensor as a client states it; ShapeError if no tensor can have it."""
    if not 1 <= len(shape) <= MAX_RANK or min(shape) < 1:
        raise ShapeError(
            f"`{tensor}` has shape {list(shape)[: MAX_RANK + 1]}, expected 1 to {MAX_RANK} sizes "
            "of at least 1"
        )
    return tuple(shape)


def read_raw(tensor: str, datatype: Datatype, shape: Sequence[int], raw: bytes) -> Array:
    """The array of a tensor's bytes; ShapeError if there are more, or fewer, than it takes."""
    count = prod(check_shape(tensor, shape))
    if datatype.size is None:
        return object_array(_split_elements(tensor, raw, count), shape)
    if len(raw) != count * datatype.size:
        raise ShapeError(
            f"`{tensor}` has {len(raw)} bytes, expected {count * datatype.size} of "
            f"{datatype.name} of shape {list(shape)}",
            got=len(raw),
            expected=count * datatype.size,
        )
    if datatype.name == "BF16":
        halves = np.frombuffer(raw, "<u2").astype("<u4")
        return (halves << 16).view("<f4").reshape(shape)
    if datatype.name == "BOOL":
        return np.frombuffer(raw, "u1").reshape(shape).astype(bool)
    return np.frombuffer(raw, datatype.dtype).reshape(shape)


def read_values(
    tensor: str, datatype: Datatype, shape: Sequence[int], values: Sequence[Any]
) -> Array:
    """The array of a tensor's elements, in row-major order.

    Args:
        values: bool, int or float as the datatype says; bytes for BYTES.
    Raises:
        ShapeError: there are more, or fewer, than the shape says, or one does not fit.
    """
    count = prod(check_shape(tensor, shape))
    if len(values) != count:
        raise ShapeError(
            f"`{tensor}` has {len(values)} elements, expected {count} of shape {list(shape)}",
            got=len(values),
            expected=count,
        )
    if datatype.size is None:
        return object_array(values, shape)
    if datatype.name in _CODES:  # as numpy, without its watch for what overflows: 3 us
        code = _CODES[datatype.name]
        return np.frombuffer(floats(code, values), code).reshape(shape)
    try:
        return np.array(values, datatype.dtype).reshape(shape)
    except (OverflowError, TypeError, ValueError):
        raise ShapeError(
            f"`{tensor}` has an element that is no {datatype.name}; send it in another datatype"
        ) from None


def write_raw(datatype: Datatype, array: Array) -> bytes:
    """The bytes of an array of one of our outputs (none is BF16)."""
    if datatype.size is None:
        return b"".join(
            part for element in array.flat for part in (_LENGTH.pack(len(element)), element)
        )
    return np.ascontiguousarray(array, datatype.dtype).tobytes()


def object_array(elements: Sequence[bytes], shape: Sequence[int]) -> Array:
    """An array of bytes objects, which numpy would make one of fixed widths."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def _split_elements(tensor: str, raw: bytes, count: int) -> list[bytes]:
    """The elements of a BYTES tensor."""
    elements: list[bytes] = []
    at = 0
    while at < len(raw) and len(elements) < count:
        start = at + _LENGTH.size
        if start > len(raw):
            break
        (length,) = _LENGTH.unpack_from(raw, at)
        at = start + length
        elements.append(raw[start:at])
    if at != len(raw) or len(elements) != count:
        raise ShapeError(
            f"`{tensor}` has {len(raw)} bytes, which are not {count} elements of BYTES, each its "
            "length as a little-endian uint32 and then so many bytes"
        )
    return elements
