"""The server's end of binary frames: handles and records -> requests, answers -> records.

Rules
- A handle means a session of this connection's tenant. The frame that binds it may use it; a frame
  with one bad binding binds none and runs nothing.
- x comes as float32, and is float64 from there on, as JSON's numbers are: 0.1 as a float32 gets the
  reply that JSON's 0.10000000149011612 gets, digit for digit. Integers are exact in either.
- y is in raw units and leaves as float32; where a scaling makes it float64 the digits beyond
  float32 are lost, unless the request came in float64.
- Records of sessions with seats stay arrays, from the frame to the reply; see `gathering`.
- Text is for JSON frames: ids of tokens come as integers, and replies are y alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, TypeVar

import msgspec
import numpy as np
import orjson

from service.blocks import MAX_STEPS, Block, Done
from service.engine import Engine
from service.errors import CarouselError, RequestError, ShapeError
from service.job import Answer, Request
from service.key_ring import Caller
from service.model import Model
from service.origin import Origin
from service.protocols.exchange import refusal
from service.protocols.frames import (
    MAX_HANDLES,
    NO_FLAG,
    NO_STEP,
    REPLY_HEAD,
    Dtype,
    Flag,
    Frame,
    Replies,
    Reply,
)
from service.protocols.gathering import LEAST_ROWS, Arrival, Bundle, alike
from service.protocols.seating import NO_SEAT, Named, Seating
from service.session import SessionKey
from service.wire import (
    MAX_SESSION_ID_CHARS,
    Array,
    RowShape,
    encode,
    refuse_not_finite,
    wrong_shape,
)

Out = TypeVar("Out")


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
        return reply_dtype(self.dtype)


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

    def __init__(self, engine: Engine, tenant: str) -> None:
        self._tenant = tenant
        self._bound: dict[int, Bound] = {}
        self._seating = Seating(engine)

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
        if any(one.handle in self._bound for one in bindings):
            self._bound = dict(self._bound)  # rows under way still mean what they meant
        for one in bindings:
            self._bound[one.handle] = Bound(SessionKey(self._tenant, one.session_id), one.model)
            self._seating.forget(one.handle)

    def arrival(
        self,
        frame: Frame,
        number: int,
        caller: Caller,
        origin: Origin,
        write: Callable[[Replies, Dtype], Out],
    ) -> Arrival[Record, Out]:
        """What a frame asks for; `number`: the frame's, from 1."""
        handles = frame.heads["handle"].astype(np.int64)
        seats, bundles = self._seat(frame, handles)
        bound = self._bound

        def replies(rows: Array, block: Block, done: Done) -> Out:
            return write(_answers(frame.heads[rows], number, rows, done), reply_dtype(frame.dtype))

        return Arrival(
            seats,
            frame.heads["step"].astype(np.int64),
            bundles,
            self._seating.generation,
            origin,
            tag=lambda row: Record(number, row, int(handles[row]), frame.dtype),
            read=lambda row: _request(frame, row, bound, caller, origin),
            left=lambda row: self._seating.forget(int(handles[row])),
            write=replies,
        )

    def _seat(self, frame: Frame, handles: Array) -> tuple[Array, list[Bundle]]:
        """(records,) seats, `NO_SEAT` of those that go by themselves, and the others' bundles."""

        def name_of(row: int) -> Named | None:
            one = self._bound.get(int(handles[row]))
            return None if one is None else (one.key, one.model)

        heads, seats = frame.heads, np.full(len(handles), NO_SEAT, np.int64)
        bundles: list[Bundle] = []
        if len(handles) < LEAST_ROWS:
            return seats, bundles
        found, kinds = self._seating.find(handles, name_of)
        steps = heads["steps"].astype(np.int64)
        is_plain = (found != NO_SEAT) & (heads["flags"] == 0) & (heads["step"] >= NO_STEP)
        is_plain &= (steps >= 1) & (steps <= MAX_STEPS)
        plain = np.flatnonzero(is_plain)
        for group in alike(kinds[plain] * (MAX_STEPS + 1) + steps[plain]):
            rows = plain[group]
            model = self._seating.model(int(kinds[rows[0]]))
            bundle = None if model is None else _bundle(model, frame, rows)
            if bundle is not None:
                bundles.append(bundle)
                seats[bundle.rows] = found[bundle.rows]
        return seats, bundles


def _bundle(model: Model, frame: Frame, rows: Array) -> Bundle | None:
    """Of records of sessions on `model`, equally long; None: none is what it takes."""
    shape, steps = model.row_shape, int(frame.heads["steps"][rows[0]])
    is_float = frame.values.dtype.kind == "f"
    if is_float and shape.dtype == "int64":
        return None
    width = prod(shape.tail)
    is_fit = frame.heads["width"][rows] == width
    if not is_fit.all():
        rows = rows[is_fit]
    if not len(rows):
        return None
    values = frame.values
    if len(rows) < len(frame.heads):
        values = values[frame.starts[rows][:, np.newaxis] + np.arange(steps * width)]
    if is_float and not np.isfinite(values).all():
        return None
    wide = np.float64 if shape.dtype == "float32" else np.int64
    return Bundle(model, rows, values.reshape(len(rows), steps, *shape.tail).astype(wide))


def _request(
    frame: Frame, record: int, handles: Mapping[int, Bound], caller: Caller, origin: Origin
) -> Request:
    """What one record asks for; RequestError if its head says what it may not."""
    handle, _, step, _, flags = frame.heads[record].item()
    bound = handles.get(handle)
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


def reply_dtype(dtype: Dtype) -> Dtype:
    """Of the replies to a frame of `dtype`."""
    return Dtype.FLOAT64 if dtype is Dtype.FLOAT64 else Dtype.FLOAT32


def _answers(asked: Array, frame: int, items: Array, done: Done) -> Replies:
    """What became of (n,) records of a frame, by their heads."""
    rows, steps = done.y.shape[:2]
    y = done.y.reshape(rows, -1)
    heads = np.zeros(rows, REPLY_HEAD)
    heads["handle"] = asked["handle"]
    heads["steps"] = steps
    heads["step"] = done.steps
    heads["width"] = y.shape[1] // steps
    heads["frame"] = frame
    heads["item"] = items
    return Replies(heads, y)


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
