"""The server's end of binary frames: handles and records -> requests, answers -> records.

Rules
- A handle means a session of this connection's tenant. The frame that binds it may use it; a frame
  with one bad binding binds none and runs nothing.
- x comes as float32, and is float64 from there on, as JSON's numbers are: 0.1 as a float32 gets the
  reply that JSON's 0.10000000149011612 gets, digit for digit. Integers are exact in either.
- y is in raw units and leaves as float32; where a scaling makes it float64 the digits beyond
  float32 are lost, unless the request came in float64.
- Text is for JSON frames: ids of tokens come as integers, and replies are y alone.
"""

from dataclasses import dataclass
from math import prod
from typing import Annotated

import msgspec
import numpy as np
import orjson

from service.errors import CarouselError, RequestError, ShapeError
from service.job import Answer, Request
from service.key_ring import Caller
from service.origin import Origin
from service.protocols.exchange import refusal
from service.protocols.frames import (
    MAX_HANDLES,
    NO_FLAG,
    NO_STEP,
    Dtype,
    Flag,
    Frame,
    Reply,
)
from service.session import SessionKey
from service.wire import (
    MAX_SESSION_ID_CHARS,
    Array,
    RowShape,
    encode,
    refuse_not_finite,
    wrong_shape,
)


class _Binding(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One object of a request frame's json."""

    handle: Annotated[int, msgspec.Meta(ge=0, lt=MAX_HANDLES)]
    session_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SESSION_ID_CHARS)]
    model: Annotated[str, msgspec.Meta(min_length=1)] | None = None


_FLAGS = {
    (created, restarted): (Flag.CREATED if created else NO_FLAG)
    | (Flag.RESTARTED if restarted else NO_FLAG)
    for created in (False, True)
    for restarted in (False, True)
}
_bindings = msgspec.json.Decoder(list[_Binding])


@dataclass(frozen=True, slots=True)
class Bound:
    """What a handle means."""

    key: SessionKey
    model: str | None


@dataclass(frozen=True, slots=True)
class Record:
    """Where in which frame a request stands."""

    frame: int  # from 1
    item: int  # from 0
    handle: int
    dtype: Dtype  # of the frame

    @property
    def reply_dtype(self) -> Dtype:
        return Dtype.FLOAT64 if self.dtype is Dtype.FLOAT64 else Dtype.FLOAT32


@dataclass(frozen=True, slots=True)
class BinaryRows:
    """The x of one record; the frame's bytes live as long as it does."""

    frame: Frame
    record: int

    def decode(self, shape: RowShape) -> Array:
        rows = self.frame.rows(self.record)
        is_float = rows.dtype.kind == "f"
        if is_float and shape.dtype == "int64":
            raise ShapeError(
                f"`x` is {rows.dtype.name}, expected int32 or int64: {shape.wanted} from manifest "
                "port `x`; text is for JSON frames"
            )
        if rows.shape[1] != prod(shape.tail) or not len(rows):
            raise wrong_shape(rows.shape, shape)
        if is_float:
            refuse_not_finite(rows)
        wide = rows.astype(np.float64 if shape.dtype == "float32" else np.int64)
        return wide.reshape(len(rows), *shape.tail)


class Handles:
    """The sessions that one connection has numbers for."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._bound: dict[int, Bound] = {}

    def bind(self, names: bytes) -> None:
        """Read a request frame's json; RequestError if it is no array of bindings."""
        if not names:
            return
        try:
            bindings = _bindings.decode(names)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(
                f"the frame's json: {error}; expected an array of {{handle, session_id, model?}}"
            ) from error
        for one in bindings:
            self._bound[one.handle] = Bound(SessionKey(self._tenant, one.session_id), one.model)

    def request(self, frame: Frame, record: int, caller: Caller, origin: Origin) -> Request:
        """What one record asks for; RequestError if its head says what it may not."""
        handle, _, step, _, flags = frame.heads[record].item()
        bound = self._bound.get(handle)
        if bound is None:
            raise RequestError(
                f"handle {handle} means no session on this connection, expected one that a frame's "
                "json has bound"
            )
        if step < NO_STEP:
            raise RequestError(f"`step` is {step}, expected 0 or more, or -1 for none")
        if flags:
            raise RequestError(f"`flags` is {flags}, expected 0")
        return Request(
            key=bound.key,
            rows=BinaryRows(frame, record),
            step=None if step == NO_STEP else step,
            model=bound.model,
            want=("y",),
            most=caller.max_sessions,
            origin=origin,
        )


def answered(record: Record, answer: Answer) -> Reply:
    """The record of a reply frame that tells an answer."""
    return Reply(
        record.handle,
        record.frame,
        record.item,
        answer.step,
        _FLAGS[answer.created, answer.restarted],
        answer.y,
    )


def refused(record: Record, error: CarouselError, request: Request | None = None) -> Reply:
    """The record of a reply frame that tells an error."""
    body = encode(refusal(error, request, frame=record.frame, item=record.item))
    return Reply(
        record.handle,
        record.frame,
        record.item,
        status=error.status,
        error=orjson.loads(body),  # whatever an error carries, as JSON has it
    )
