"""The input of an inference as rows of sequences: (T, *tail) of numbers, or texts."""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from service.errors import RequestError, ShapeError
from service.protocols.v2.datatypes import Datatype
from service.protocols.v2.messages import InferInput
from service.wire import RowShape

Array = np.ndarray

INPUT = "x"


class TensorRows(Struct, frozen=True):
    """One row of the input `x`: (T, *tail), or the elements of BYTES."""

    datatype: Datatype
    data: Array

    def decode(self, shape: RowShape) -> Array:
        """(time, *tail) in the client's units, or (time,) ids of text."""
        if self.datatype.name == "BYTES":
            return self._ids(shape)
        kinds = "fiu" if shape.dtype == "float32" else "iu"
        if self.data.dtype.kind not in kinds:
            raise ShapeError(
                f"`{INPUT}` has datatype {self.datatype.name}, expected "
                f"{'a float or an integer' if 'f' in kinds else 'an integer'}"
                f"{' or BYTES' if shape.vocabulary else ''}"
            )
        if self.data.shape[1:] != shape.tail:
            sizes = ", ".join(["batch", "time", *map(str, shape.tail)])
            raise ShapeError(
                f"a row of `{INPUT}` has shape {self.data.shape}, expected {shape.wanted} from "
                f"manifest port `x`: `{INPUT}` is ({sizes})"
            )
        if shape.dtype == "int64":
            return self._as_int64()
        return self.data

    def _as_int64(self) -> Array:
        if self.data.dtype.kind == "u" and int(self.data.max()) >= 2**63:
            raise ShapeError(f"`{INPUT}` holds {int(self.data.max())}, expected less than 2^63")
        return self.data.astype(np.int64)

    def _ids(self, shape: RowShape) -> Array:
        if shape.vocabulary is None:
            raise ShapeError(f"`{INPUT}` is BYTES, and this model takes numbers: {shape.wanted}")
        if self.data.ndim > 1:
            raise ShapeError(
                f"a row of `{INPUT}` has shape {self.data.shape}, expected (1,), a text, or "
                "(time,), its tokens"
            )
        try:
            texts = [element.decode() for element in self.data.flat]
        except UnicodeDecodeError as error:
            raise ShapeError(f"`{INPUT}` holds text that is not UTF-8: {error}") from None
        ids = shape.vocabulary.ids_of(texts[0] if len(texts) == 1 else texts)
        if not len(ids):
            raise ShapeError(f"`{INPUT}` is an empty text, expected at least one token")
        return ids


def rows_of(inputs: Sequence[InferInput]) -> list[TensorRows]:
    """One for each of B; RequestError, ShapeError if the inputs are not `x`, (B, T, ...)."""
    names = [one.name for one in inputs]
    if names != [INPUT]:
        got = ", ".join(f"`{name}`" for name in names[:8]) or "none"
        raise RequestError(f"the inputs are {got}, expected one, `{INPUT}`")
    (x,) = inputs
    data = x.data
    if x.datatype.name == "BYTES" and data.ndim == 1:
        data = data[:, np.newaxis]
    if data.ndim < 2:
        raise ShapeError(
            f"`{INPUT}` has shape {list(data.shape)}, expected (batch, time, ...); a batch of one "
            "row is 1"
        )
    return [TensorRows(x.datatype, row) for row in data]
