"""Rows as callers have them <-> rows as JSON has them.

Rules
- Every number travels with all its digits: float32 is widened first, so that the server reads the
  very number that the caller has.
- NaN and infinity are refused here, as JSON has neither.
- What comes in as pandas goes out as pandas, with its index; everything else goes out as numpy.
  pandas is never imported: who has such an object has imported it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from service import errors
from service.client.errors import BadInput

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Rows:
    """The x of one request."""

    json: bytes
    count: int | None  # rows; None: text, whose tokens the server counts
    dress: Callable[[Array], Any]  # y (T, ...) in the clothes that x came in
    given: Any  # as the caller gave it


def read_rows(x: Any) -> Rows:
    """What the server is sent for `x`.

    Args:
        x: (T, ...) numbers: numpy, nested lists, DataFrame (T, columns), Series (T,) of numbers,
            which is one column; or text: a string, a list or Series of tokens. Not changed.
    Raises:
        BadInput: it is none of these, or has NaN or infinity.
    """
    if isinstance(x, str):
        return Rows(orjson.dumps(x), None, _bare, x)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(x, pandas.DataFrame | pandas.Series):
        return _read_pandas(x, pandas)
    array = x if isinstance(x, np.ndarray) else _array_of(x)
    return Rows(_write(array), len(array), _bare, x)


def _bare(y: Array) -> Array:
    return y


def _read_pandas(x: Any, pandas: Any) -> Rows:
    values = x.to_numpy()
    is_series = x.ndim == 1
    if is_series and not _is_text(values):
        values = values[:, None]

    def dress(y: Array) -> Any:
        index = x.index
        if y.ndim == 1 or (is_series and y.shape[1:] == (1,)):
            return pandas.Series(y.reshape(len(y)), index=index, name="y")
        return pandas.DataFrame(y.reshape(len(y), -1), index=index)

    return Rows(_write(values), len(values), dress, x)


def _array_of(x: Any) -> Array:
    try:
        return np.array(x)
    except ValueError as error:
        raise _bad(f"`x` is no array: {error}; expected rows of one length") from None


def _is_text(array: Array) -> bool:
    return array.dtype.kind in "UT" or (
        array.dtype.kind == "O" and all(isinstance(item, str) for item in array.flat)
    )


def _write(array: Array) -> bytes:
    if array.ndim == 0 or array.size == 0:
        raise _bad(f"`x` has shape {array.shape}, expected (time, ...) with at least one row")
    if _is_text(array):
        return orjson.dumps(array.tolist())
    kind = array.dtype.kind
    if kind in "iu":
        return orjson.dumps(array.tolist())
    if kind not in "fO":
        raise _bad(f"`x` has dtype {array.dtype}, expected numbers or text")
    try:
        wide = np.ascontiguousarray(array, "float64")
    except (TypeError, ValueError) as error:
        raise _bad(f"`x` has dtype {array.dtype}, expected numbers: {error}") from None
    finite = np.isfinite(wide)
    if not finite.all():
        row = int((~finite.reshape(len(wide), -1).all(axis=1)).argmax())
        message = f"`x` holds NaN or infinity in row {row}, expected finite numbers"
        raise BadInput(message, errors.NotFiniteError.code, None, {"row": row})
    return orjson.dumps(wide, option=orjson.OPT_SERIALIZE_NUMPY)


def _bad(message: str) -> BadInput:
    return BadInput(message, errors.ShapeError.code)
