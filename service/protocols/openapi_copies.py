"""The routes of forks, snapshots and promotion as OpenAPI paths, with examples."""

from typing import Any

from service.errors import (
    ArtifactError,
    BadEncodingError,
    CapacityError,
    ForbiddenError,
    IdempotencyConflictError,
    IncompatibleError,
    InvalidJsonError,
    MethodNotAllowedError,
    ModelConflictError,
    NoSnapshotKeyError,
    OtherTenantError,
    RequestError,
    SessionExistsError,
    SessionNotFoundError,
    SignatureError,
    SnapshotError,
    StepConflictError,
    StoreFullError,
    StoreUnavailableError,
    TooLongError,
    UnauthorizedError,
    UnknownModelError,
    UnsupportedEncodingError,
)
from service.protocols.openapi_bodies import (
    MAX_SESSION_ID,
    OTHER_VERSION,
    SESSION,
    SESSION_FIELDS,
    SINE_VERSION,
    STEP,
    closed,
)
from service.protocols.openapi_form import IDEMPOTENCY_KEY, json_media, operation

_SNAPSHOT = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_FORK_SCHEMA = closed(
    (),
    {
        "session_id": {
            **MAX_SESSION_ID,
            "nullable": True,
            "description": "Of the copy; the server makes one, if absent.",
        },
        "step": {**STEP, "nullable": True, "description": "Where the session must stand."},
    },
)
_FORKED_SCHEMA = closed(
    (*SESSION_FIELDS, "forked_from"), {**SESSION_FIELDS, "forked_from": {"type": "string"}}
)
_RESTORED_SCHEMA = closed(
    (*SESSION_FIELDS, "replaced"), {**SESSION_FIELDS, "replaced": {"type": "boolean"}}
)
_PROMOTION_SCHEMA = closed(
    (),
    {
        "from": {"type": "string", "nullable": True, "description": "All others, if absent."},
        "to": {"type": "string", "nullable": True, "description": "The newest, if absent."},
    },
)
_PROMOTED_SCHEMA = closed(
    ("model", "from", "to", "refused"),
    {
        "model": {"type": "string"},
        "from": {"type": "array", "items": {"type": "string"}},
        "to": {"type": "string"},
        "refused": {
            "type": "array",
            "items": {},
            "description": "Versions whose sessions cannot move, as their ports differ.",
        },
    },
)
_PROMOTED = {"model": "sine-cell", "from": [SINE_VERSION], "to": OTHER_VERSION, "refused": []}


def copy_paths(session_id: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """path -> OpenAPI path item; `session_id` is the parameter of that name."""
    caller = (UnauthorizedError, ForbiddenError)
    coding = (UnsupportedEncodingError, BadEncodingError)
    body = (InvalidJsonError, RequestError, TooLongError, MethodNotAllowedError, *coding, *caller)
    store = (StoreUnavailableError, StoreFullError)
    return {
        "/sessions/{session_id}/fork": {
            "post": operation(
                "fork",
                "Copy a session, its last reply included, to another session id. Where the server "
                "makes the id, a request with the same Idempotency-Key finds the same copy.",
                json_media(
                    _FORKED_SCHEMA,
                    what_if={**SESSION, "session_id": "pump-7-what-if", "forked_from": "pump-7"},
                    id_made_here={**SESSION, "session_id": "0a1b2c3d", "forked_from": "pump-7"},
                ),
                (
                    *(*body, SessionNotFoundError, SessionExistsError, StepConflictError),
                    *(IdempotencyConflictError, CapacityError, *store),
                ),
                parameters=(session_id, IDEMPOTENCY_KEY),
                requestBody={
                    "content": json_media(
                        _FORK_SCHEMA,
                        what_if={"session_id": "pump-7-what-if", "step": 2},
                        id_made_here={},
                    )
                },
            )
        },
        "/sessions/{session_id}/snapshot": {
            "get": operation(
                "snapshot",
                "Download a session: a safetensors file, signed with the server's key.",
                _SNAPSHOT,
                (
                    *(*caller, SessionNotFoundError, MethodNotAllowedError, NoSnapshotKeyError),
                    StoreUnavailableError,
                ),
                parameters=(session_id,),
            ),
            "put": operation(
                "restore",
                "Begin a session from a snapshot.",
                json_media(_RESTORED_SCHEMA, begun={**SESSION, "replaced": False}),
                (
                    *(RequestError, TooLongError, SnapshotError, SignatureError, OtherTenantError),
                    *(UnknownModelError, ModelConflictError, IncompatibleError),
                    *(SessionExistsError, MethodNotAllowedError, NoSnapshotKeyError),
                    *(CapacityError, ArtifactError, *store, *caller, *coding),
                ),
                parameters=(
                    session_id,
                    {
                        "name": "replace",
                        "in": "query",
                        "schema": {"type": "boolean"},
                        "description": "Put it over the session that is there.",
                    },
                ),
                requestBody={"required": True, "content": _SNAPSHOT},
            ),
        },
        "/models/{name}/promote": {
            "post": operation(
                "promote",
                "Move the sessions of one version to another, each with its next request.",
                json_media(_PROMOTED_SCHEMA, one_version=_PROMOTED, all_others=_PROMOTED),
                (
                    *(*body, UnknownModelError, IncompatibleError, CapacityError, ArtifactError),
                    *store,
                ),
                parameters=(
                    {
                        "name": "name",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string"},
                        "example": "sine-cell",
                    },
                ),
                requestBody={
                    "content": json_media(
                        _PROMOTION_SCHEMA,
                        one_version={"from": SINE_VERSION, "to": OTHER_VERSION},
                        all_others={},
                    )
                },
            )
        },
    }
