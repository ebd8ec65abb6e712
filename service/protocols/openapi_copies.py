"""The routes of forks, snapshots and promotion as OpenAPI paths, with examples."""

from typing import Any

from service.errors import (
    ArtifactError,
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
    TooLongError,
    UnauthorizedError,
    UnknownModelError,
)
from service.protocols.openapi_form import IDEMPOTENCY_KEY, json_media, operation

_SESSION = {
    "session_id": "pump-7",
    "model": "sine-cell",
    "version": "0123456789abcdef",
    "step": 2,
}
_SNAPSHOT = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_FORK_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "session_id": {
            "type": "string",
            "minLength": 1,
            "maxLength": 256,
            "nullable": True,
            "description": "Of the copy; the server makes one, if absent.",
        },
        "step": {
            "type": "integer",
            "minimum": 0,
            "nullable": True,
            "description": "Where the session must stand.",
        },
    },
}
_PROMOTION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "from": {"type": "string", "nullable": True, "description": "All others, if absent."},
        "to": {"type": "string", "nullable": True, "description": "The newest, if absent."},
    },
}


def copy_paths(session_id: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """path -> OpenAPI path item; `session_id` is the parameter of that name."""
    caller = (UnauthorizedError, ForbiddenError)
    body = (InvalidJsonError, RequestError, TooLongError, MethodNotAllowedError, *caller)
    return {
        "/sessions/{session_id}/fork": {
            "post": operation(
                "fork",
                "Copy a session, its last reply included, to another session id. Where the server "
                "makes the id, a request with the same Idempotency-Key finds the same copy.",
                json_media(
                    {"type": "object"},
                    {**_SESSION, "session_id": "pump-7-what-if", "forked_from": "pump-7"},
                ),
                (
                    *body,
                    SessionNotFoundError,
                    SessionExistsError,
                    StepConflictError,
                    IdempotencyConflictError,
                    CapacityError,
                ),
                parameters=[session_id, IDEMPOTENCY_KEY],
                requestBody={"content": json_media(_FORK_SCHEMA, {"session_id": "pump-7-what-if"})},
            )
        },
        "/sessions/{session_id}/snapshot": {
            "get": operation(
                "snapshot",
                "Download a session: a safetensors file, signed with the server's key.",
                _SNAPSHOT,
                (*caller, SessionNotFoundError, MethodNotAllowedError, NoSnapshotKeyError),
                parameters=[session_id],
            ),
            "put": operation(
                "restore",
                "Begin a session from a snapshot.",
                json_media({"type": "object"}, {**_SESSION, "replaced": False}),
                (
                    *(RequestError, TooLongError, SnapshotError, SignatureError, OtherTenantError),
                    *(UnknownModelError, ModelConflictError, IncompatibleError),
                    *(SessionExistsError, MethodNotAllowedError, NoSnapshotKeyError),
                    *(CapacityError, ArtifactError, *caller),
                ),
                parameters=[
                    session_id,
                    {
                        "name": "replace",
                        "in": "query",
                        "schema": {"type": "boolean"},
                        "description": "Put it over the session that is there.",
                    },
                ],
                requestBody={"required": True, "content": _SNAPSHOT},
            ),
        },
        "/models/{name}/promote": {
            "post": operation(
                "promote",
                "Move the sessions of one version to another, each with its next request.",
                json_media(
                    {"type": "object"},
                    {
                        "model": "sine-cell",
                        "from": ["0123456789abcdef"],
                        "to": "fedcba9876543210",
                        "refused": [],
                    },
                ),
                (*body, UnknownModelError, IncompatibleError, CapacityError, ArtifactError),
                parameters=[
                    {
                        "name": "name",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string"},
                        "example": "sine-cell",
                    }
                ],
                requestBody={"content": json_media(_PROMOTION_SCHEMA, {})},
            )
        },
    }
