"""One call over HTTP, sent until it is answered: what to do next, with no I/O.

A call is a generator. It yields what it wants done, a `Call` to be sent or a `Pause` to be waited,
and is sent what came of it, a `Response` or a `Cut`; what it returns is the result. `sync` and
`aio` drive the same generators, each by its own httpx client.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec

from service.client.errors import (
    CallError,
    Refused,
    StoreUnavailable,
    TryLater,
    Unreachable,
    refusal_of_bytes,
)
from service.client.patience import Backoff, Patience

Result = TypeVar("Result")

JSON = {"content-type": "application/json"}
_MAYBE_RUN = (502, 504)  # of a proxy that lost the server while it waited for its answer


@dataclass(frozen=True, slots=True)
class Call:
    """One request to be sent."""

    method: str
    path: str  # with the address's query; quoted
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 0.0  # set for each try


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    retry_after: str | None
    body: bytes

    def json(self) -> Any:
        """
        Raises:
            Unreachable: it is not JSON, so it is no answer of Carousel's.
        """
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            shown = self.body[:200]
            raise Unreachable(f"the answer is no JSON: {shown!r}; is this Carousel?") from None


@dataclass(frozen=True, slots=True)
class Cut:
    """No whole answer came; the request may have been run."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before going on."""

    seconds: float


Talk = Generator[Call | Pause, Response | Cut | None, Result]


@dataclass(frozen=True, slots=True)
class Answered:
    """What a call got, and whether an earlier try of it may have been run."""

    response: Response
    tried_before: bool


class CallFailed(Exception):
    """How a call ended without an answer that it was after."""

    def __init__(self, error: CallError, maybe_run: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.maybe_run = maybe_run  # by one of its tries


def ask(call: Call, patience: Patience) -> Talk[Answered]:
    """Send `call` until it is answered; only for calls that do no harm when they are run twice.

    Raises:
        CallFailed: it was refused, or no answer came in time.
    """
    backoff = Backoff(patience)
    maybe_run = False
    while True:
        outcome = yield replace(call, timeout_s=backoff.try_for_s)
        error: CallError
        retry_after_s = None
        if isinstance(outcome, Response):
            if outcome.status < 400:
                return Answered(outcome, maybe_run)
            error = refused = refusal_of(outcome)
            maybe_run = maybe_run or _is_doubtful(refused)
            if not isinstance(refused, TryLater):
                raise CallFailed(refused, maybe_run)
            retry_after_s = refused.retry_after_s
        else:
            maybe_run = True
            error = _unreachable(call, outcome)
        pause_s = backoff.pause_s(retry_after_s)
        if pause_s is None:
            raise CallFailed(error, maybe_run) from error.__cause__
        yield Pause(pause_s)


def refusal_of(response: Response) -> Refused:
    return refusal_of_bytes(response.body, response.status, response.retry_after)


def _is_doubtful(refused: Refused) -> bool:
    return isinstance(refused, StoreUnavailable) or refused.status in _MAYBE_RUN


def _unreachable(call: Call, outcome: Cut | None) -> Unreachable:
    cause = outcome.error if isinstance(outcome, Cut) else None
    why = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
    error = Unreachable(f"{call.method} {call.path} got no answer in time; last: {why}")
    error.__cause__ = cause
    return error


def ask_json(call: Call, patience: Patience) -> Talk[Any]:
    """The JSON answer of a call that changes nothing."""
    answered = yield from settled(call, patience)
    return answered.response.json()


def settled(call: Call, patience: Patience) -> Talk[Answered]:
    """`ask`, with what it raises as the caller sees it."""
    try:
        return (yield from ask(call, patience))
    except CallFailed as failed:
        raise failed.error from failed.error.__cause__
