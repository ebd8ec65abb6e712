"""One open WebSocket of /ws: frames in, frames out, until one side ends it.

Rules
- A text frame is a /predict body, with an `id` of the client's own if it likes, or an array of
  such bodies. Each reply is a text frame: what /predict replies, and the `id`.
- A binary frame is a request frame of service/protocols/frames.py. Replies that are ready leave
  together, in one binary frame of some `REPLY_FRAME_BYTES` at most.
- A frame that is refused gets an error with its number, from 1, and in an array or a binary frame
  with its item, from 0; the connection goes on.
- The key is asked for each frame: one that is revoked or expires ends the connection (1008).
- When the server drains, what was read is answered, then an error says from which frame (and item)
  on nothing was run, in the kind of the last frame that came; then it closes (1001).
- When the client closes or goes, what has not started is not run: who wants every reply waits for
  it before closing.
- Who waits for whom is `Exchange`'s affair, as under every protocol that streams.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from service.engine import Engine
from service.errors import (
    CarouselError,
    ClientError,
    DrainingError,
    ForbiddenError,
    TooLongError,
    UnauthorizedError,
)
from service.job import Answer, Request
from service.key_ring import Caller
from service.origin import Origin
from service.protocols.asgi import ClientGone, Message, Receive, Send
from service.protocols.binary import Handles, Record, answered, refused
from service.protocols.exchange import Exchange, refusal
from service.protocols.frames import NO_HANDLE, Dtype, Reply, decode_requests, encode_replies
from service.protocols.many import is_array, split
from service.protocols.native import request_of, write_answer
from service.wire import FrameId, decode_frame, encode, find_id

# Of replies in one frame, unless one reply alone is longer: a quarter of what the Python package
# `websockets` takes unless told otherwise (1 MiB).
REPLY_FRAME_BYTES = 256 << 10

PROTOCOL = "ws"  # as metrics and spans name it

GOING_AWAY = 1001
POLICY = 1008
TOO_BIG = 1009


@dataclass(frozen=True, slots=True)
class Close:
    """How the server ends a connection."""

    code: int
    reason: str


@dataclass(slots=True)
class Text:
    """Where a body stands; `id` is known once it was read."""

    frame: int  # from 1
    item: int | None = None  # from 0, in an array
    id: FrameId = None


Tag = Text | Record


@dataclass(frozen=True, slots=True)
class Out:
    """What answers one request: a text frame, or a record of a binary frame."""

    text: bytes = b""
    record: Reply | None = None
    dtype: Dtype = Dtype.FLOAT32


class Conversation:
    """The frames of one connection."""

    def __init__(
        self,
        engine: Engine,
        tenant: str,
        admit: Callable[[], Caller],
        origin: Origin,
        max_frame_bytes: int,
    ) -> None:
        """
        Args:
            tenant: whose sessions they are, for as long as it lasts.
            admit: who sends the frame that has come; asked for each.
        """
        self._engine = engine
        self._tenant = tenant
        self._admit = admit
        self._origin = origin
        self._max_frame_bytes = max_frame_bytes
        self._handles = Handles(tenant)
        self._exchange: Exchange[Tag, Out] = Exchange(
            engine, tenant, _write_answer, _write_error, protocol=PROTOCOL
        )
        self._close = Close(GOING_AWAY, "the server is shutting down")
        self._frames = 0  # that came
        self._next: Tag = Text(1)  # what is to be read next

    async def hold(self, receive: Receive, send: Send) -> Close:
        """Answer frames until the server must end it; ClientGone once the client has.

        Returns:
            Why it ends; all that was read is answered.
        """

        async def send_ready(outs: list[Out]) -> None:
            for message in _messages(outs):
                await send(message)

        is_draining = self._engine.is_draining
        if is_draining or not await self._exchange.run(self._read(receive), send_ready):
            draining = DrainingError(
                "the server is shutting down; this frame (from this item on) and those after it "
                "were not run, send them to another, or try again"
            )
            self._engine.metrics.refused(draining)
            await send_ready([_write_error(self._next, draining, None)])
        return self._close

    async def _read(self, receive: Receive) -> None:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                raise ClientGone
            self._frames += 1
            text: str | None = message.get("text")
            is_text = text is not None
            self._next = place = self._place(is_text)
            try:
                body = bytes(message["bytes"]) if text is None else text.encode()
                if len(body) > self._max_frame_bytes:
                    raise self._too_long(len(body))
                caller = self._who()
            except (UnauthorizedError, ForbiddenError) as error:
                self._close = Close(POLICY, error.message)
                await self._refuse(place, error)
                return
            except TooLongError as error:
                self._close = Close(TOO_BIG, error.message)
                await self._refuse(place, error)
                return
            if is_text:
                await self._read_text(body, caller)
            else:
                await self._read_binary(body, caller)
            self._next = self._place(is_text, after=1)

    def _place(self, is_text: bool, after: int = 0) -> Tag:
        number = self._frames + after
        return Text(number) if is_text else _whole(number)

    def _who(self) -> Caller:
        caller = self._admit()
        if caller.tenant != self._tenant:
            raise ForbiddenError("this API key is now another tenant's; connect again")
        return caller

    def _too_long(self, size: int) -> TooLongError:
        return TooLongError(
            f"the frame has {size} bytes, the server takes {self._max_frame_bytes}; send several",
            got=size,
            expected=self._max_frame_bytes,
        )

    async def _read_text(self, body: bytes, caller: Caller) -> None:
        if not is_array(body):
            tag = Text(self._frames)
            await self._exchange.submit(tag, partial(self._text_request, tag, body, caller))
            return
        try:
            bodies = split(body, self._engine.max_queue)
        except ClientError as error:
            await self._refuse(Text(self._frames), error)
            return
        for item, one in enumerate(bodies):
            self._next = tag = Text(self._frames, item)
            await self._exchange.submit(tag, partial(self._text_request, tag, one, caller))

    def _text_request(self, tag: Text, body: bytes, caller: Caller) -> Request:
        try:
            envelope = decode_frame(body)
        except ClientError:
            tag.id = find_id(body)
            raise
        tag.id = envelope.id
        return request_of(envelope, caller, self._origin)

    async def _read_binary(self, body: bytes, caller: Caller) -> None:
        try:
            frame = decode_requests(body)
            self._handles.bind(frame.json)
        except ClientError as error:
            await self._refuse(_whole(self._frames), error)
            return
        for item, handle in enumerate(frame.heads["handle"].tolist()):
            self._next = tag = Record(self._frames, item, handle, frame.dtype)
            read = partial(self._handles.request, frame, item, caller, self._origin)
            await self._exchange.submit(tag, read)

    async def _refuse(self, tag: Tag, error: CarouselError) -> None:
        """Answer a frame by an error once there is room: who does not read gets no more of them."""

        def raise_it() -> Request:
            raise error

        await self._exchange.submit(tag, raise_it)


def _whole(frame: int) -> Record:
    """A binary frame of which no record can be named."""
    return Record(frame, 0, NO_HANDLE, Dtype.FLOAT32)


def _write_answer(tag: Tag, answer: Answer) -> Out:
    if isinstance(tag, Record):
        return Out(record=answered(tag, answer), dtype=tag.reply_dtype)
    body = write_answer(answer)
    return Out(body if tag.id is None else b'{"id":%s,%s' % (encode(tag.id), body[1:]))


def _write_error(tag: Tag, error: CarouselError, request: Request | None) -> Out:
    if isinstance(tag, Record):
        return Out(record=refused(tag, error, request), dtype=tag.reply_dtype)
    place: dict[str, object] = {"frame": tag.frame}
    if tag.item is not None:
        place["item"] = tag.item
    if tag.id is not None:
        place["id"] = tag.id
    return Out(encode(refusal(error, request, **place)))


def _messages(outs: list[Out]) -> Iterator[Message]:
    """The frames to send: a text each, and of records that follow each other as many as fit."""
    records: list[Reply] = []
    size, dtype = 0, Dtype.FLOAT32
    for out in outs:
        more = _size_of(out)
        is_alike = out.record is not None and out.dtype is dtype
        if records and not (is_alike and size + more <= REPLY_FRAME_BYTES):
            yield _binary(records, dtype)
            records, size = [], 0
        if out.record is None:
            yield {"type": "websocket.send", "text": out.text.decode()}
        else:
            records.append(out.record)
            size, dtype = size + more, out.dtype
    if records:
        yield _binary(records, dtype)


def _size_of(out: Out) -> int:
    y = out.record.y if out.record is not None else None
    return 512 if y is None else 32 + y.size * out.dtype.numpy.itemsize  # an error: some 300


def _binary(records: list[Reply], dtype: Dtype) -> Message:
    return {"type": "websocket.send", "bytes": encode_replies(records, dtype)}
