"""Every error that Carousel raises on purpose, by what went wrong and whose fault it is.

The branch says whose fault: `ClientError` (send something else), `CapacityError` (try later),
`ArtifactError` (export or fetch the artifact again), `InternalError` (ours). `code` is what
clients match on; `status` is a hint that only the protocol layer turns into an HTTP status.
The wording is: thing, got, expected, where; then what to do.
"""

from typing import ClassVar


class CarouselError(Exception):
    """Base of all; `data` goes beside `code` and `message` in the error reply."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(self, message: str, **data: object) -> None:
        super().__init__(message)
        self.message = message
        self.data = data

    def body(self) -> dict[str, object]:
        """The error as every native route words it: {"error": {"code", "message", ...data}}."""
        return {"error": {"code": self.code, "message": self.message, **self.data}}


# The client's: the same request will fail again. ------------------------------------------


class ClientError(CarouselError):
    """The request is at fault; send a different one."""

    code = "bad_request"
    status = 400


class InvalidJsonError(ClientError):
    """The body (or one NDJSON line) is not JSON."""

    code = "invalid_json"


class FrameError(ClientError):
    """A binary frame is not laid out as service/protocols/frames.py says."""

    code = "bad_frame"


class RequestError(ClientError):
    """A field is missing, unknown, or of the wrong type."""

    code = "invalid_request"


class ShapeError(ClientError):
    """An array is not of the shape or dtype that the manifest's port says."""

    code = "bad_shape"


class UnknownTokenError(ClientError):
    """A text holds a token that the model's vocabulary does not have."""

    code = "unknown_token"


class NotFiniteError(ClientError):
    """An input holds NaN or infinity."""

    code = "not_finite"


class ResultNotFiniteError(ClientError):
    """Finite input drove the model to NaN or infinity; the session stays as it was."""

    code = "result_not_finite"
    status = 422


class TooLongError(ClientError):
    """More steps in one request, or more bytes in one body, than the server takes."""

    code = "too_long"
    status = 413


class UnsupportedEncodingError(ClientError):
    """The body has a `Content-Encoding` that the server does not read; `expected` lists them."""

    code = "unsupported_encoding"
    status = 415


class BadEncodingError(ClientError):
    """The body is not what its `Content-Encoding` says: damaged, or cut off."""

    code = "bad_encoding"


class UnauthorizedError(ClientError):
    """The server wants an API key, and the request has none that it knows."""

    code = "unauthorized"
    status = 401


class ForbiddenError(ClientError):
    """The caller is known, or known not to be asked for, and may not do this."""

    code = "forbidden"
    status = 403


class UnknownModelError(ClientError):
    """No such model, or no such version of it, is served."""

    code = "unknown_model"
    status = 404


class SessionNotFoundError(ClientError):
    """Look-up or drop of a session that does not exist."""

    code = "session_not_found"
    status = 404


class CannotForecastError(ClientError):
    """The model cannot go on by itself: its y is not its next x, or nothing in it is drawn."""

    code = "cannot_forecast"


class RouteNotFoundError(ClientError):
    """No such route."""

    code = "not_found"
    status = 404


class NotOfferedError(ClientError):
    """A part of a protocol that this server has nothing behind."""

    code = "not_offered"
    status = 501


class MethodNotAllowedError(ClientError):
    """The route exists, but not under this HTTP method."""

    code = "method_not_allowed"
    status = 405


class UpgradeRequiredError(ClientError):
    """The route is for WebSockets, and the request is none."""

    code = "upgrade_required"
    status = 426


class StepConflictError(ClientError):
    """The request's `step` is not where the session stands; `expected` says where it does."""

    code = "step_conflict"
    status = 409


class ModelConflictError(ClientError):
    """The session lives on another model than the request names."""

    code = "model_conflict"
    status = 409


class SessionExistsError(ClientError):
    """A fork or a restore would be put over a session that is there."""

    code = "session_exists"
    status = 409


class IdempotencyConflictError(ClientError):
    """The idempotency key is that of another request, which was done."""

    code = "idempotency_conflict"
    status = 422


class IncompatibleError(ClientError):
    """Ports of two versions of a model differ, so a state of one is none of the other."""

    code = "incompatible"
    status = 409


class SnapshotError(ClientError):
    """The body is no snapshot of a session as this Carousel writes it."""

    code = "bad_snapshot"


class SignatureError(ClientError):
    """The snapshot was changed, or was signed with a key that this server does not have."""

    code = "bad_signature"
    status = 403


class OtherTenantError(ClientError):
    """The snapshot is of another tenant's session."""

    code = "other_tenant"
    status = 403


class SessionGoneError(ClientError):
    """`step` > 0 for a session the server does not hold: it expired or was dropped."""

    code = "session_gone"
    status = 410


# Capacity: the same request may succeed later. ---------------------------------------------


class CapacityError(CarouselError):
    """The server, or the caller's share of it, is full; `limit` says which; `retry_after_s`."""

    code = "overloaded"
    status = 429


class StoreUnavailableError(CapacityError):
    """The store of the sessions cannot be reached; the request may have been done, or not.

    Sent again with the same `step`, it is done once.
    """

    code = "store_unavailable"
    status = 503


class StoreFullError(CapacityError):
    """The store has no space left, as on a full disk; nothing was lost."""

    code = "store_full"
    status = 503


class TimedOutError(CapacityError):
    """Its client's own timeout, or the server's, was over first; the request was not done.

    What a run of it had computed is thrown away: its session stands where it stood.
    """

    code = "timed_out"
    status = 504


class ModelLoadingError(CapacityError):
    """The model's artifact is here, and not loaded yet, `reference`; asked again, it will be."""

    code = "model_loading"
    status = 503


class DrainingError(CarouselError):
    """The server is shutting down; another replica, or the next start, answers."""

    code = "draining"
    status = 503


# The artifact's. -----------------------------------------------------------------------------


class ArtifactError(CarouselError):
    """The artifact on disk is not what its manifest says; export or fetch it again."""

    code = "bad_artifact"
    status = 503


class EngineMissingError(ArtifactError):
    """The variant runs under a package that is not installed here, `package`."""

    code = "engine_missing"


class NotIsolatedError(ArtifactError):
    """Batches were asked for, and the variant mixes the rows of a batch."""

    code = "not_isolated"


class StateTooLargeError(ArtifactError):
    """A session's state would take more bytes than the server allows, `expected`."""

    code = "state_too_large"


class SelfTestError(ArtifactError):
    """This machine computes something else than the golden vectors say."""

    code = "self_test_failed"


# Ours. ---------------------------------------------------------------------------------------


class InternalError(CarouselError):
    """A bug of ours; the log has the traceback, the reply does not."""

    code = "internal"


class NoSnapshotKeyError(CarouselError):
    """Servers that share a store have no key in common to sign snapshots with; set one."""

    code = "no_snapshot_key"
    status = 501


class SettingsError(CarouselError):
    """A CAROUSEL_* setting is unknown, malformed, or contradicts another; the start stops."""

    code = "bad_settings"
