"""The Python client: sessions that survive whatever happens between it and the server.

    with Client("http://localhost:3000") as client:
        pump = client.session("pump-7")
        y = pump.predict(x)

Rules
- Every request carries `step`, which the client counts by the answers that it got. So a request
  that is sent again is run once: after a cut, a timeout, 429 or 503 the client sends the same bytes
  again and gets the answer that it should have had.
- It waits as long as Retry-After says, else ever longer, each client another while; and gives up
  after `retry_for_s`, saying what has no answer. To do the same again is safe then, too.
- A session joins where the server holds it, unless it is told a step. Whoever else moves it is
  found out by `StepConflict`; the session that is gone, by `SessionGone`: it is never begun again
  unless the caller says so.
- A stream keeps what has no answer, in a buffer that is bounded, and sends it again after a cut,
  one request of each session at a time. So no answer is lost; who asks for more at a time is told
  which were.
- What the server computes is what the caller gets: numbers travel with all their digits.

What is asked and what an answer means is decided in modules without I/O, the same for `Client` and
`AsyncClient`: `talk` (one call), `place` (one session), `forecasting`, `lanes` (a stream). It needs
httpx, websockets, numpy, msgspec and orjson, and pandas only where the caller passes pandas.

errors, patience <- rows, talk <- place, forecasting <- lane <- lanes, ndjson <- message
    <- channel, links <- streams <- sync, asynchronous
"""

from service.client.async_stream import AsyncSessionStream, AsyncStream
from service.client.asynchronous import AsyncClient, AsyncSession
from service.client.errors import (
    BadInput,
    CallError,
    Draining,
    ModelConflict,
    ModelLoading,
    NotAllowed,
    Overloaded,
    Refused,
    ResultNotFinite,
    ServerFault,
    SessionExists,
    SessionGone,
    SessionNotFound,
    StepConflict,
    StoreUnavailable,
    StreamClosed,
    TooLong,
    TryLater,
    Unacknowledged,
    UnknownModel,
    Unreachable,
)
from service.client.forecasting import Ahead
from service.client.lane import Event, Lost, NotRun
from service.client.place import Reply, Standing
from service.client.sync import Client, Session
from service.client.sync_stream import SessionStream, Stream

__all__ = [
    "Ahead",
    "AsyncClient",
    "AsyncSession",
    "AsyncSessionStream",
    "AsyncStream",
    "BadInput",
    "CallError",
    "Client",
    "Draining",
    "Event",
    "Lost",
    "ModelConflict",
    "ModelLoading",
    "NotAllowed",
    "NotRun",
    "Overloaded",
    "Refused",
    "Reply",
    "ResultNotFinite",
    "ServerFault",
    "Session",
    "SessionExists",
    "SessionGone",
    "SessionNotFound",
    "SessionStream",
    "Standing",
    "StepConflict",
    "StoreUnavailable",
    "Stream",
    "StreamClosed",
    "TooLong",
    "TryLater",
    "Unacknowledged",
    "UnknownModel",
    "Unreachable",
]
