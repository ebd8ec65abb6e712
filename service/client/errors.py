"""What a call may raise: by what went wrong, with what was acknowledged and what was not.

Rules
- The server's refusals are `Refused`, one class for each thing that a caller would handle by
  itself; `code` is the server's, `data` what stood beside it.
- `TryLater` are those that may succeed later: the client tries again by itself, and raises one
  only when its time is up.
- `Unreachable` is raised when no whole answer came in that time.
- `unacknowledged` of each says which requests may have been run and have no answer. To send one of
  them again, as it was, is safe; everything else was answered, or was never run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from service import errors


@dataclass(frozen=True, slots=True)
class Unacknowledged:
    """A request that was sent and not answered; `x` is what the caller gave."""

    session_id: str
    step: int | None  # of its first row; None: it was never sent
    x: Any


class CallError(Exception):
    """Base of all that the client raises about a call."""

    def __init__(self, message: str, unacknowledged: tuple[Unacknowledged, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.unacknowledged = unacknowledged


class Unreachable(CallError):
    """No whole answer came in `retry_for_s`; the last thing that went wrong is its cause."""


class StreamClosed(CallError):
    """The stream was closed before all that was sent was answered."""


class Refused(CallError):
    """The server said no; nothing was changed by it."""

    def __init__(
        self,
        message: str,
        code: str = "error",
        status: int | None = None,
        data: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """
        Args:
            status: the HTTP status; None: it is an answer within a stream, or the client's own.
            retry_after_s: when the server says that it may succeed.
        """
        super().__init__(message)
        self.code = code
        self.status = status
        self.data = dict(data or {})
        self.retry_after_s = retry_after_s


class BadInput(Refused):
    """The request is at fault: its shape, numbers, tokens or fields. Send another."""


class ResultNotFinite(Refused):
    """The model's result is NaN or infinite; the session stays as it was."""


class TooLong(Refused):
    """Too many rows or bytes in one request; send it in several."""


class StepConflict(Refused):
    """The session stands elsewhere: others use it, or it was used meanwhile."""

    @property
    def expected(self) -> int:
        """The step at which the server holds the session."""
        return int(self.data["expected"])


class SessionGone(Refused):
    """The session had begun, and the server holds it no more: it expired or was dropped."""


class SessionNotFound(Refused):
    """There is no such session to look up, copy or drop."""


class SessionExists(Refused):
    """A copy would be put over a session that is there."""


class ModelConflict(Refused):
    """The session lives on another model than the one named."""

    @property
    def expected(self) -> str:
        """The model and version on which it lives."""
        return str(self.data["expected"])


class UnknownModel(Refused):
    """No such model is served."""


class NotAllowed(Refused):
    """The API key is missing, unknown, or may not do this."""


class ServerFault(Refused):
    """The server's or the artifact's fault; its log says why."""


class TryLater(Refused):
    """Not now; the client has tried until its time was up."""


class Overloaded(TryLater):
    """The server, or the caller's share of it, is full; `data["limit"]` says of what."""


class StoreUnavailable(TryLater):
    """The server cannot reach its store, or the store is full; the request may have been run."""


class ModelLoading(TryLater):
    """The model is there, and not loaded yet."""


class Draining(TryLater):
    """The server shuts down."""


_KINDS: dict[str, type[Refused]] = {
    errors.StepConflictError.code: StepConflict,
    errors.SessionGoneError.code: SessionGone,
    errors.SessionNotFoundError.code: SessionNotFound,
    errors.SessionExistsError.code: SessionExists,
    errors.ModelConflictError.code: ModelConflict,
    errors.UnknownModelError.code: UnknownModel,
    errors.UnauthorizedError.code: NotAllowed,
    errors.ForbiddenError.code: NotAllowed,
    errors.SignatureError.code: NotAllowed,
    errors.OtherTenantError.code: NotAllowed,
    errors.ResultNotFiniteError.code: ResultNotFinite,
    errors.TooLongError.code: TooLong,
    errors.CapacityError.code: Overloaded,
    errors.StoreUnavailableError.code: StoreUnavailable,
    errors.StoreFullError.code: StoreUnavailable,
    errors.ModelLoadingError.code: ModelLoading,
    errors.DrainingError.code: Draining,
}
_AGAIN = (429, 502, 503, 504)  # of what stands between, and has no body of ours


def refusal(body: object, status: int | None = None, retry_after_s: float | None = None) -> Refused:
    """What `body`, as the server worded it, is.

    Args:
        body: {"error": {"code", "message", ...}}; whatever else it is, `status` decides.
    """
    error = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        kind = TryLater if status in _AGAIN else ServerFault if (status or 500) >= 500 else Refused
        what = f"status {status}, and no error of Carousel's: {str(body)[:200]!r}"
        return kind(what, f"http_{status}", status, None, retry_after_s)
    code = str(error.get("code", "error"))
    stated = error.get("retry_after_s", retry_after_s)
    known = _KINDS.get(code) or (ServerFault if (status or 400) >= 500 else BadInput)
    data = {name: value for name, value in error.items() if name not in ("code", "message")}
    return known(str(error.get("message", code)), code, status, data, stated)


def refusal_of_bytes(body: bytes, status: int, retry_after: str | None = None) -> Refused:
    """The same of a reply over HTTP."""
    try:
        decoded: object = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        decoded = body.decode("utf-8", "replace")
    seconds = float(retry_after) if retry_after is not None and retry_after.isdigit() else None
    return refusal(decoded, status, seconds)
