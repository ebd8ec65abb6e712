"""POST /predict of an array: many bodies in one request, their replies in the same order.

Rules
- The bodies are those of any number of sessions. All are handed to the engine at once, so that they
  fill its batches; those of one session run in their order.
- Each gets its reply, or {"error", "status", "session_id", "step"}: the status that it would have
  had alone. One that is refused ends nothing. The request as a whole is 200.
- What finds the queue full waits for room; only a server that drains refuses what is left.
- At most `max_queue` bodies, as many as the engine can hold at once. None at all is a mistake.
- An idempotency key is that of every body without `step`. One session's requests cannot be told
  apart by it, so a session that comes twice needs `step`.
- A client that hangs up abandons them all.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from service.engine import Engine
from service.errors import (
    CapacityError,
    CarouselError,
    InternalError,
    InvalidJsonError,
    RequestError,
    TooLongError,
)
from service.job import Answer, Job, Request
from service.protocols.asgi import ClientGone, Receive
from service.session import SessionKey
from service.wire import encode

# Bodies that are read, or replies that are written, before others have their turn on the loop:
# half a millisecond.
AT_ONCE = 64
QUEUE_LIMITS = ("queue", "tenant_queue")  # of a CapacityError: what waiting helps

logger = logging.getLogger("carousel.http")

_bodies = msgspec.json.Decoder(list[msgspec.Raw])


def is_array(body: bytes) -> bool:
    return body[:1] != b"{" and body.lstrip()[:1] == b"["


def split(body: bytes, most: int) -> list[bytes]:
    """The bodies of an array, each still raw.

    Raises:
        InvalidJsonError: it is not JSON.
        RequestError: it is empty.
        TooLongError: it holds more than `most`.
    """
    try:
        bodies = _bodies.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJsonError(
            f"the body is not a strict JSON array: {error}; expected one of /predict bodies; NaN "
            "and Infinity are not JSON numbers"
        ) from error
    if not bodies:
        raise RequestError("the array is empty, expected one /predict body or more")
    if len(bodies) > most:
        raise TooLongError(
            f"the array has {len(bodies)} bodies, the server takes {most} in one request "
            "(CAROUSEL_MAX_QUEUE); send them in several",
            got=len(bodies),
            expected=most,
        )
    return [bytes(one) for one in bodies]


async def predict_many(
    engine: Engine,
    body: bytes,
    receive: Receive,
    read_request: Callable[[bytes], Request],
    write_answer: Callable[[Answer], bytes],
    idempotency_key: str | None = None,
) -> bytes:
    """The reply to an array of /predict bodies.

    Raises:
        InvalidJsonError, RequestError, TooLongError: as `split`; nothing was run.
        DrainingError: the server is shutting down; nothing was run.
        ClientGone: the client has hung up; what had not begun is not run.
    """
    engine.refuse_if_draining()
    many = _Many(engine, read_request, write_answer, idempotency_key)
    answering = asyncio.create_task(many.answer(split(body, engine.max_queue)))
    leaving = asyncio.create_task(_hang_up(receive))
    leaving.add_done_callback(lambda _: answering.cancel())
    try:
        return b"[" + b",".join(await answering) + b"]"
    except asyncio.CancelledError:
        if leaving.done():
            raise ClientGone from None
        raise
    finally:
        leaving.cancel()
        many.abandon()


async def _hang_up(receive: Receive) -> None:
    """Until the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        continue


class _Many:
    """The requests of one array."""

    def __init__(
        self,
        engine: Engine,
        read_request: Callable[[bytes], Request],
        write_answer: Callable[[Answer], bytes],
        idempotency_key: str | None,
    ) -> None:
        self._engine = engine
        self._read_request = read_request
        self._write_answer = write_answer
        self._idempotency_key = idempotency_key
        self._has_step: dict[SessionKey, bool] = {}  # all requests so far of a session
        self._jobs: list[Job] = []

    async def answer(self, bodies: Sequence[bytes]) -> list[bytes]:
        """Each body's reply."""
        accepted: list[Job | bytes] = []  # bytes: the reply to what was refused
        for number, body in enumerate(bodies):
            accepted.append(await self._accept(body))
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
        replies: list[bytes] = []
        for number, one in enumerate(accepted):
            replies.append(await self._reply(one) if isinstance(one, Job) else one)
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
        return replies

    def abandon(self) -> None:
        """Nobody waits for what is not done yet."""
        for job in self._jobs:
            if not job.future.done() or job.future.cancelled():  # by who awaited it
                self._engine.abandon(job)

    async def _accept(self, body: bytes) -> Job | bytes:
        request: Request | None = None
        try:
            request = self._read_request(body)
            request = self._with_key(request)
            job = await self._submit(request)
        except CarouselError as error:
            return self._refusal(error, request)
        self._jobs.append(job)
        return job

    def _with_key(self, request: Request) -> Request:
        if self._idempotency_key is None:
            return request
        has_step = request.step is not None
        if request.key in self._has_step and not (has_step and self._has_step[request.key]):
            raise RequestError(
                f"session `{request.session_id}` comes more than once in the array, and an "
                "Idempotency-Key does not tell its requests apart; give each of them its `step`"
            )
        self._has_step[request.key] = has_step
        return request if has_step else replace(request, idempotency_key=self._idempotency_key)

    async def _submit(self, request: Request) -> Job:
        while True:
            await self._engine.wait_for_room(request.key.tenant)
            try:
                return await self._engine.submit(request)
            except CapacityError as error:  # another was faster
                if error.data.get("limit") not in QUEUE_LIMITS:
                    raise

    async def _reply(self, job: Job) -> bytes:
        try:
            return self._write_answer(await job.future)
        except CarouselError as error:
            return self._refusal(error, job.request)
        except Exception:
            logger.exception("the answer to session %s could not be written", job.key.session_id)
            return self._refusal(InternalError("the server failed"), job.request)

    def _refusal(self, error: CarouselError, request: Request | None) -> bytes:
        """`request`: None if it could not be read."""
        self._engine.metrics.refused(error)
        body: dict[str, object] = {**error.body(), "status": error.status}
        if request is not None:
            body["session_id"] = request.session_id
            if request.step is not None:
                body["step"] = request.step
        return encode(body)
