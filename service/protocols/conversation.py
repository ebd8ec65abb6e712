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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from service.blocks import Block, Done
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
from service.protocols.frames import (
    NO_HANDLE,
    REPLY_HEAD,
    Dtype,
    Replies,
    Reply,
    decode_requests,
    encode_replies,
)
from service.protocols.gathering import LEAST_ROWS, Arrival, hand_over
from service.protocols.lines import Names, seat_bodies, write_bodies
from service.protocols.many import is_array, split
from service.protocols.native import request_of, write_answer
from service.protocols.seating import Seating
from service.wire import (
    Array,
    FrameEnvelope,
    FrameId,
    decode_frame,
    encode,
    find_id,
    read_frames,
)

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
    """What answers requests: a text frame for each, or records of a binary frame."""

    texts: Sequence[bytes] = ()
    records: Reply | Replies | None = None
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
        self._handles = Handles(engine, tenant)
        self._names = Names(Seating(engine), tenant)
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
        bodies = read_frames(body)
        if bodies is not None and LEAST_ROWS <= len(bodies) <= self._engine.max_queue:
            await self._hand_over(self._texts(bodies, caller))
            return
        try:
            raw = split(body, self._engine.max_queue)
        except ClientError as error:
            await self._refuse(Text(self._frames), error)
            return
        for item, one in enumerate(raw):
            self._next = tag = Text(self._frames, item)
            await self._exchange.submit(tag, partial(self._text_request, tag, one, caller))

    async def _hand_over(self, arrival: Arrival[Tag, Out]) -> None:
        def note(count: int) -> None:
            self._next = arrival.tag(count)
            if isinstance(self._next, Text):
                self._next.id = None  # which names what was read

        await hand_over(self._exchange, self._tenant, arrival, note)

    def _texts(self, bodies: Sequence[FrameEnvelope], caller: Caller) -> Arrival[Tag, Out]:
        """The bodies of an array."""
        frame, names = self._frames, self._names
        seats, steps, bundles = seat_bodies(bodies, names)

        def write(rows: Array, block: Block, done: Done) -> Out:
            asked = [bodies[row] for row in rows.tolist()]
            replies = write_bodies(asked, names, block, done)
            return Out([_named(body.id, reply) for body, reply in zip(asked, replies, strict=True)])

        return Arrival(
            seats,
            steps,
            bundles,
            names.generation,
            self._origin,
            tag=lambda row: Text(frame, row, bodies[row].id),
            read=lambda row: request_of(bodies[row], caller, self._origin),
            left=lambda row: names.forget(bodies[row].session_id),
            write=write,
        )

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
        arrival = self._handles.arrival(
            frame,
            self._frames,
            caller,
            self._origin,
            lambda records, dtype: Out((), records, dtype),
        )
        await self._hand_over(arrival)

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
        return Out((), answered(tag, answer), tag.reply_dtype)
    return Out([_named(tag.id, write_answer(answer))])


def _named(name: FrameId, body: bytes) -> bytes:
    """A reply with the client's own name for it."""
    return body if name is None else b'{"id":%s,%s' % (encode(name), body[1:])


def _write_error(tag: Tag, error: CarouselError, request: Request | None) -> Out:
    if isinstance(tag, Record):
        return Out((), refused(tag, error, request), tag.reply_dtype)
    place: dict[str, object] = {"frame": tag.frame}
    if tag.item is not None:
        place["item"] = tag.item
    if tag.id is not None:
        place["id"] = tag.id
    return Out([encode(refusal(error, request, **place))])


def _messages(outs: list[Out]) -> Iterator[Message]:
    """The frames to send: a text each, and of records that follow each other as many as fit."""
    records: list[Reply | Replies] = []
    size, dtype = 0, Dtype.FLOAT32
    for out in outs:
        for part, more in _pieces(out):
            if records and not (out.dtype is dtype and size + more <= REPLY_FRAME_BYTES):
                yield _binary(records, dtype)
                records, size = [], 0
            records.append(part)
            size, dtype = size + more, out.dtype
        for text in out.texts:
            if records:
                yield _binary(records, dtype)
                records, size = [], 0
            yield {"type": "websocket.send", "text": text.decode()}
    if records:
        yield _binary(records, dtype)


def _pieces(out: Out) -> Iterator[tuple[Reply | Replies, int]]:
    """The records of one, each piece as large as a frame at most, and its bytes."""
    found, itemsize = out.records, out.dtype.numpy.itemsize
    if isinstance(found, Replies):
        one = REPLY_HEAD.itemsize + found.y.shape[1] * itemsize
        most = max(1, REPLY_FRAME_BYTES // one)
        for start in range(0, len(found.y), most):
            piece = found.part(start, start + most)
            yield piece, one * len(piece.y)
    elif found is not None:
        yield found, 512 if found.y is None else 32 + found.y.size * itemsize  # an error: some 300


def _binary(records: list[Reply | Replies], dtype: Dtype) -> Message:
    return {"type": "websocket.send", "bytes": encode_replies(records, dtype)}
