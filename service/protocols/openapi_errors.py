"""One example of each error that a native route can answer with, as a server words it.

A test provokes each and compares: the examples are what is sent, but for versions and times.
"""

from service.errors import (
    ArtifactError,
    BadEncodingError,
    CannotForecastError,
    CapacityError,
    CarouselError,
    DrainingError,
    ForbiddenError,
    IdempotencyConflictError,
    IncompatibleError,
    InvalidJsonError,
    MethodNotAllowedError,
    ModelConflictError,
    ModelLoadingError,
    NoSnapshotKeyError,
    NotFiniteError,
    OtherTenantError,
    RequestError,
    ResultNotFiniteError,
    SessionExistsError,
    SessionGoneError,
    SessionNotFoundError,
    ShapeError,
    SignatureError,
    SnapshotError,
    StepConflictError,
    StoreFullError,
    StoreUnavailableError,
    TimedOutError,
    TooLongError,
    UnauthorizedError,
    UnknownModelError,
    UnknownTokenError,
    UnsupportedEncodingError,
    UpgradeRequiredError,
)

SINE, SERIES = "sine-cell:0123456789abcdef", "series-lstm:fedcba9876543210"
_FIELDS = "{session_id, x, step?, model?, want?, choose?}"

_EXAMPLES: tuple[CarouselError, ...] = (
    InvalidJsonError(f"the body is not JSON: Input data was truncated; expected {_FIELDS}"),
    RequestError(f"Object missing required field `x`; expected {_FIELDS}"),
    ShapeError(
        "`x` has shape (1, 2), expected (time, 1) from manifest port `x`",
        got=[1, 2],
        expected=["time", 1],
    ),
    UnknownTokenError(
        '`x` holds "Z" at position 4, which is none of the vocabulary\'s 8 tokens; leave it out, '
        "or declare an `unknown` token in the pipeline and export again",
        token="Z",
        position=4,
    ),
    NotFiniteError("row 0 of `x` holds nan, expected finite numbers", row=0),
    ResultNotFiniteError(
        "the model's result for session `pump-8` is not finite at step 1; the session stays at "
        "step 0",
        session_id="pump-8",
        step=0,
        at_step=1,
    ),
    TooLongError(
        "the body has 8388609 bytes or more, the server takes 8388608; send it in several requests",
        got=8388609,
        expected=8388608,
    ),
    UnsupportedEncodingError(
        "the body's Content-Encoding is 'br', expected gzip, deflate, or none",
        got="br",
        expected=["gzip", "deflate"],
    ),
    BadEncodingError("the body is not gzip, as its Content-Encoding says: it ends in the middle"),
    UnauthorizedError(
        "this server wants an API key, expected the header `Authorization: Bearer KEY` or "
        "`X-API-Key: KEY`"
    ),
    ForbiddenError(
        "this changes the server for all tenants, expected an API key with `admin = true`"
    ),
    UnknownModelError(
        f"model `nobody` is not served, expected one of ['{SERIES}', '{SINE}']",
        model="nobody",
        models=[SERIES, SINE],
    ),
    SessionNotFoundError(
        "there is no session `pump-8`; it never began, expired, or was dropped",
        session_id="pump-8",
    ),
    CannotForecastError(
        f"{SERIES} cannot forecast: its y is float32 of shape ['B', 'T', 2], its x float32 of "
        "shape ['B', 'T', 8]; only what it is told can be its next x, row by row, by POST /predict",
        model=SERIES,
    ),
    MethodNotAllowedError(
        "/predict does not take GET, expected POST", method="GET", expected=["POST"]
    ),
    StepConflictError(
        "session `pump-7` stands at step 2, request says 9; resend from step 2 or drop `step`",
        session_id="pump-7",
        expected=2,
        got=9,
    ),
    ModelConflictError(
        f"session `pump-7` lives on {SINE}, request says series-lstm; drop `model` or use another "
        "session_id",
        session_id="pump-7",
        expected=SINE,
        got="series-lstm",
    ),
    SessionExistsError(
        f"session `pump-7` is there already, on {SINE} at step 2; use another session_id, or drop "
        "it first",
        session_id="pump-7",
        model="sine-cell",
        version="0123456789abcdef",
        step=2,
    ),
    IdempotencyConflictError(
        "the last request of session `pump-7` had this idempotency key and was another one; the "
        "session stands at step 2; use a new key for each request, and the same one only to send "
        "that request again",
        session_id="pump-7",
        step=2,
    ),
    IncompatibleError(
        f"sessions of {SINE} cannot move to 89abcdef01234567: `c` is float32 (B, 1, 8) and float32 "
        "(B, 1, 9); `h` is float32 (B, 1, 8) and float32 (B, 1, 9); let them end where they are",
        model="sine-cell",
        source="0123456789abcdef",
        to="89abcdef01234567",
        ports=[
            {"port": "c", "from": "float32 (B, 1, 8)", "to": "float32 (B, 1, 9)"},
            {"port": "h", "from": "float32 (B, 1, 8)", "to": "float32 (B, 1, 9)"},
        ],
    ),
    SnapshotError(
        "the body has 14 bytes, expected a snapshot as GET /sessions/{id}/snapshot gives it"
    ),
    SignatureError(
        "the snapshot of 640 bytes was changed, or was signed with a key that is not among this "
        "server's CAROUSEL_SNAPSHOT_KEY"
    ),
    OtherTenantError("the snapshot is of another tenant's session"),
    SessionGoneError(
        "session `pump-8` is gone or never began, request says step 5; begin again with step 0",
        session_id="pump-8",
        expected=0,
        got=5,
    ),
    UpgradeRequiredError("/ws is a WebSocket, and this GET asks for no upgrade; open ws://HOST/ws"),
    CapacityError(
        "4096 requests are waiting, the server takes 4096; retry in 1 s",
        limit="queue",
        retry_after_s=1,
    ),
    StoreUnavailableError(
        "the store of the sessions cannot be reached; retry with the same `step` in 1 s",
        retry_after_s=1,
    ),
    StoreFullError("the disk of the sessions is full; nothing was lost, try again"),
    TimedOutError(
        "the request took longer than its timeout of 30 s; it was not done, and its session stands "
        "where it stood; send it again, or give it more time"
    ),
    ModelLoadingError(f"{SINE} is being loaded; try again", reference=SINE),
    DrainingError("the server is shutting down; send it to another, or try again"),
    ArtifactError(
        "manifest says sha256 0f1e2d3c4b5a... for onnx-fp32 (onnx-fp32.onnx), the file has "
        "5a4b3c2d1e0f...; export the model again",
        artifact="artifacts/sine-cell/0123456789abcdef",
    ),
    NoSnapshotKeyError(
        "there is no key to sign snapshots with; set CAROUSEL_SNAPSHOT_KEY to the same 32 bytes or "
        "more for all servers that share the store"
    ),
)
_BY_KIND = {type(example): example for example in _EXAMPLES}


def error_example(kind: type[CarouselError]) -> dict[str, object]:
    """The whole body of a reply with such an error."""
    return _BY_KIND[kind].body()
