"""POST /forecast: a body in, one line a step out, as each is known.

    {"session_id", "horizon", "x"?, "step"?, "model"?, "samples"?, "seed"?, "want"?, "choose"?}

Rules
- The reply is server-sent events where the request accepts `text/event-stream`, else NDJSON, of
  the same JSON: `start` (the session, its model, the step it stands at), a `step` for each step
  (its index, which is the event's id, and what stands there), and `done`.
- What cannot be done is refused with its status; what goes wrong later is an `error`, the last
  line. A reply that ends with neither `done` nor `error` was cut off.
- With `samples` each field of a step is a list, one element a sample.
- When the client goes away the forecast stops. A draining server answers what it accepted.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from service.engine import Engine
from service.errors import CarouselError, InternalError
from service.forecast import Forecast, ForecastRequest
from service.job import Rows
from service.logs import about
from service.origin import NOWHERE, Origin
from service.protocols.asgi import ClientGone, Headers, Receive, Scope, Send
from service.wire import decode_forecast, encode

# Lines that are known within it leave together, after the first: each for itself, sending a line
# took as long as computing it (276 us of a core a step of sine-cell over HTTP; so 165).
GATHER_S = 0.005
NDJSON, SSE = b"application/x-ndjson", b"text/event-stream"

logger = logging.getLogger("carousel.http")

Write = Callable[[str, Mapping[str, object]], bytes]


def read_forecast(
    body: bytes, tenant: str, rows_of: Callable[[bytes], Rows], origin: Origin = NOWHERE
) -> ForecastRequest:
    """A body as a request; ClientError if it is not one."""
    envelope = decode_forecast(body)
    return ForecastRequest(
        tenant=tenant,
        session_id=envelope.session_id,
        horizon=envelope.horizon,
        rows=None if envelope.raw_x is None else rows_of(envelope.raw_x),
        step=envelope.step,
        model=envelope.model,
        samples=envelope.samples,
        seed=envelope.seed,
        want=None if envelope.want is None else tuple(envelope.want),
        choose=envelope.choose,
        origin=origin,
    )


async def serve_forecast(
    engine: Engine, request: ForecastRequest, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer one request whose body was read.

    Raises:
        CarouselError: it cannot be done; nothing was sent yet.
        ClientGone: the client left before the end.
    """
    forecast = await engine.forecast(request)
    kind, write = (SSE, _event) if _wants_events(scope["headers"]) else (NDJSON, _line)
    watch = asyncio.create_task(_abandon_when_gone(engine, forecast, receive))
    engine.metrics.stream_opened("forecast")
    try:
        await send({"type": "http.response.start", "status": 200, "headers": _headers(kind)})
        await _send_part(send, write("start", _describe(forecast)))
        try:
            while lines := await engine.read_forecast(forecast):
                steps = [write("step", {"step": line.step, **line.shown}) for line in lines]
                await _send_part(send, b"".join(steps))
                await asyncio.sleep(GATHER_S)
            last = write("done", {"done": True, "step": forecast.next_step})
        except CarouselError as error:
            last = _refusal(engine, write, error)
        except asyncio.CancelledError:
            if forecast.future.cancelled():
                raise ClientGone from None
            raise
        except Exception:
            origin = request.origin
            logger.exception("a forecast failed", extra=about(request_id=origin.request_id))
            last = _refusal(engine, write, InternalError("the server failed; its log says why"))
        await send({"type": "http.response.body", "body": last, "more_body": False})
    finally:
        engine.metrics.stream_closed("forecast")
        watch.cancel()
        engine.abandon(forecast)


def _refusal(engine: Engine, write: Write, error: CarouselError) -> bytes:
    engine.metrics.refused(error)
    return write("error", error.body())


async def _abandon_when_gone(engine: Engine, forecast: Forecast, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    engine.abandon(forecast)


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _describe(forecast: Forecast) -> dict[str, object]:
    request, model = forecast.request, forecast.model
    start: dict[str, object] = {
        "session_id": request.session_id,
        "model": model.name,
        "version": model.version,
        "step": forecast.from_step,
        "horizon": request.horizon,
    }
    return start if request.samples is None else {**start, "samples": request.samples}


def _headers(kind: bytes) -> Headers:
    return [
        (b"content-type", kind),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),  # nginx would keep the lines until there are many
    ]


def _wants_events(headers: Headers) -> bool:
    accepted = b",".join(value for name, value in headers if name == b"accept").lower()
    return any(part.partition(b";")[0].strip() == SSE for part in accepted.split(b","))


def _line(kind: str, body: Mapping[str, object]) -> bytes:
    return encode(body) + b"\n"


def _event(kind: str, body: Mapping[str, object]) -> bytes:
    number = f"id: {body['step']}\n" if kind == "step" else ""
    return f"event: {kind}\n{number}data: ".encode() + encode(body) + b"\n\n"
