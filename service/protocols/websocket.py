"""GET /ws as a WebSocket: who may open one, and how it ends.

Rules
- Nothing is read before it is known whose page it is (browsers ask no server's leave before a page
  opens a WebSocket), who calls, and that there is a place. A refusal is an HTTP reply in the one
  error shape; a plain GET gets 426.
- Where there are API keys the key is in the handshake's headers, or, since browsers cannot set
  any, in the first frame: `{"api_key": KEY}`, within `KEY_WITHIN_S`. It is answered by
  `{"authenticated": true}` and not counted as a frame. Never in the URL, which is logged.
- An open connection may be idle for ever; pings find out whether its client is there.
- Codes of a close: 1000 by the client; 1001 the server is shutting down; 1008 no key, or one that
  is not (or no longer) known; 1009 a frame over the limit; 1011 the server failed, or its pings
  were not answered; 1013 too many connections of one tenant. 1002 and 1007 (text that is not UTF-8)
  come from the server under us.
- When the server drains, `closed` returns once every connection has been answered and closed, or
  after `DRAIN_S`: then those are cut that have not taken their answers.
- A connection that is closing for two looks is dead, and cut.
"""

import asyncio
import logging
from contextlib import suppress

import msgspec

from service.engine import Engine
from service.errors import (
    CapacityError,
    CarouselError,
    DrainingError,
    ForbiddenError,
    InternalError,
    UnauthorizedError,
    UpgradeRequiredError,
)
from service.logs import about
from service.origin import Origin, origin_of, request_id_of
from service.protocols.access import API_KEY, Access, carries_key
from service.protocols.asgi import (
    ClientGone,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    send_error,
    to_who_stays,
)
from service.protocols.conversation import GOING_AWAY, POLICY, PROTOCOL, Close, Conversation
from service.protocols.native import no_method
from service.protocols.seats import Seats
from service.protocols.uvicorn_sockets import Line
from service.wire import encode

PATH = "/ws"
KEY_WITHIN_S = 10.0  # a page sends it as soon as the connection is open
MAX_KEY_FRAME_CHARS = 4096
DRAIN_S = 10.0  # of the 30 s that Kubernetes and Circus give; work of a full queue takes a second
LEAVE_S = 5.0  # for the client to answer our close
MAX_REASON_BYTES = 123  # RFC 6455, 5.5: a control frame has 125, two are the code
FAILED = 1011
TRY_LATER = 1013
CODES: dict[type[CarouselError], int] = {
    UnauthorizedError: POLICY,
    ForbiddenError: POLICY,
    DrainingError: GOING_AWAY,
    CapacityError: TRY_LATER,
}
GIVEN_UP = "after sending 'websocket.close'"  # what uvicorn says of a message that comes later
WHERE_KEYS_GO = 'expected {"api_key": KEY} as the first frame, or a header of the handshake'
AUTHENTICATED: Message = {"type": "websocket.send", "text": '{"authenticated":true}'}

logger = logging.getLogger("carousel.http")


class _KeyFrame(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The first frame, where it shows a key."""

    api_key: str


_key_frames = msgspec.json.Decoder(_KeyFrame)


class WebSocketApp:
    """The route over one engine."""

    def __init__(
        self,
        engine: Engine,
        max_frame_bytes: int,
        access: Access,
        seats: Seats,
        look_every_s: float,
    ) -> None:
        """
        Args:
            look_every_s: how often connections are looked at that uvicorn has given up.
        """
        self._engine = engine
        self._max_frame_bytes = max_frame_bytes
        self._access = access
        self._seats = seats
        self._look_every_s = look_every_s
        self._open: dict[Line, bool] = {}  # -> whether it was closing at the last look
        self._none_open = asyncio.Event()
        self._none_open.set()

    def knows(self, scope: Scope) -> bool:
        """Whether it is a WebSocket to /ws, or a request that should have been one."""
        return bool(scope["path"] == PATH)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._refuse_http(scope, send)
            return
        line = Line(receive)
        self._note_open(line)
        try:
            await self._answer(scope, receive, _to_who_is_there(send))
            await _client_leaves(receive)
            line.abort()
        except ClientGone:
            logger.info("%s: the client went away", PATH)
            # Not at once: what was written last may still be on its way.
            asyncio.get_running_loop().call_later(LEAVE_S, line.abort)
        finally:
            self._note_gone(line)

    def _note_open(self, line: Line) -> None:
        if not self._open:
            asyncio.get_running_loop().call_later(self._look_every_s, self._look)
        self._open[line] = False
        self._none_open.clear()

    def _note_gone(self, line: Line) -> None:
        del self._open[line]
        if not self._open:
            self._none_open.set()

    async def closed(self) -> None:
        """Return once no connection is open; the engine drains."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none_open.wait(), DRAIN_S)
        for line in list(self._open):
            line.abort()

    def _look(self) -> None:
        """Cut what uvicorn has given up and cannot get rid of; look again while any is open."""
        for line, was_closing in list(self._open.items()):
            if was_closing:
                line.abort()
            self._open[line] = line.is_closing
        if self._open:
            asyncio.get_running_loop().call_later(self._look_every_s, self._look)

    # One connection -----------------------------------------------------------------------------

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """From the handshake to our close; ClientGone if the client ends it."""
        await receive()  # websocket.connect
        try:
            self._engine.refuse_if_draining()
            self._access.admit_page(scope)
            has_shown = not self._access.wants_keys or carries_key(scope)
            tenant = self._access.admit(scope).tenant if has_shown else None
            origin = origin_of(scope["headers"], PROTOCOL)
            self._seats.take(tenant)
        except CarouselError as error:
            self._engine.metrics.refused(error)
            await send_error(_as_handshake(send), error)
            return
        try:
            await send({"type": "websocket.accept"})
            if tenant is None:
                found = await self._show_key(scope, receive)
                self._seats.know(found)
                tenant = found
                await send(AUTHENTICATED)
            elif not self._access.wants_keys:
                receive = _past_needless_key(receive, send)
            close = await self._conversation(scope, tenant, origin).hold(receive, send)
        except CarouselError as error:
            close = await self._give_up(error, send)
        except ClientGone:
            raise
        except Exception:
            request_id = (request_id_of(scope["headers"]) or b"").decode()
            what = about(request_id=request_id, code=InternalError.code)
            logger.exception("%s failed", PATH, extra=what)
            close = await self._give_up(InternalError("the server failed; its log says why"), send)
        finally:
            self._seats.leave(tenant)
        reason = close.reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        await send({"type": "websocket.close", "code": close.code, "reason": reason})

    def _conversation(self, scope: Scope, tenant: str, origin: Origin) -> Conversation:
        return Conversation(
            self._engine,
            tenant,
            lambda: self._access.admit(scope),
            origin,
            self._max_frame_bytes,
        )

    async def _give_up(self, error: CarouselError, send: Send) -> Close:
        self._engine.metrics.refused(error)
        await send({"type": "websocket.send", "text": encode(error.body()).decode()})
        code = next((code for kind, code in CODES.items() if isinstance(error, kind)), FAILED)
        return Close(code, error.message)

    async def _show_key(self, scope: Scope, receive: Receive) -> str:
        """The tenant of the key in the first frame; from then on it is among the headers.

        Raises:
            UnauthorizedError: none came in time, or none that is known.
            DrainingError: the server is shutting down.
        """
        asking = asyncio.ensure_future(receive())
        forget = self._engine.on_drain(asking.cancel)
        try:
            self._engine.refuse_if_draining()
            done, _ = await asyncio.wait([asking], timeout=KEY_WITHIN_S)
        finally:
            forget()
            asking.cancel()
        if asking.cancelled():
            self._engine.refuse_if_draining()
        if not done:
            raise UnauthorizedError(f"no API key came within {KEY_WITHIN_S:g} s; {WHERE_KEYS_GO}")
        message = asking.result()
        if message["type"] == "websocket.disconnect":
            raise ClientGone
        key = _key_in(message)
        if key is None:
            raise UnauthorizedError(f"the first frame shows no API key; {WHERE_KEYS_GO}")
        scope["headers"] = [*scope["headers"], (API_KEY, key.encode())]
        return self._access.admit(scope).tenant

    async def _refuse_http(self, scope: Scope, send: Send) -> None:
        method = scope["method"]
        error: CarouselError = UpgradeRequiredError(
            f"{PATH} is a WebSocket, and this {method} asks for no upgrade; open ws://HOST{PATH}"
        )
        headers: Headers = [(b"upgrade", b"websocket"), (b"connection", b"Upgrade")]
        if method not in ("GET", "HEAD"):
            error, headers = no_method(PATH, method, ["GET"]), [(b"allow", b"GET")]
        self._engine.metrics.refused(error)
        await send_error(to_who_stays(send), error, headers)


def _to_who_is_there(send: Send) -> Send:
    """`send` that raises ClientGone once the connection is.

    Of one that is gone uvicorn raises an OSError, as ASGI says; of one that it has given up
    itself, because of a frame over the limit or an unanswered ping, a RuntimeError.
    """

    async def send_or_leave(message: Message) -> None:
        try:
            await send(message)
        except OSError:
            raise ClientGone from None
        except RuntimeError as error:
            if GIVEN_UP in str(error):
                raise ClientGone from None
            raise

    return send_or_leave


def _key_in(message: Message) -> str | None:
    """The API key that a frame shows; None if it is any other frame."""
    text = message.get("text") or ""
    if len(text) > MAX_KEY_FRAME_CHARS:
        return None
    try:
        return _key_frames.decode(text).api_key
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _past_needless_key(receive: Receive, send: Send) -> Receive:
    """`receive` without a first frame that shows a key, which is answered as where one is needed.

    So a page need not know whether the server has keys.
    """
    is_first = True

    async def receive_frame() -> Message:
        nonlocal is_first
        message = await receive()
        if is_first and _key_in(message) is not None:
            await send(AUTHENTICATED)
            message = await receive()
        is_first = False
        return message

    return receive_frame


def _as_handshake(send: Send) -> Send:
    """`send` of an HTTP reply to a handshake (ASGI's extension `websocket.http.response`)."""

    async def send_instead(message: Message) -> None:
        await send({**message, "type": f"websocket.{message['type']}"})

    return send_instead


async def _client_leaves(receive: Receive) -> None:
    """Return once the connection is gone, at most `LEAVE_S` after our close.

    The server closes it before the client has read all, if the client is still sending.
    """

    async def twice() -> None:
        for _ in range(2):  # uvicorn tells the app of its own close, and then of the end
            while (await receive())["type"] != "websocket.disconnect":
                continue

    with suppress(TimeoutError):
        await asyncio.wait_for(twice(), LEAVE_S)
