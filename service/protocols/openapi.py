"""The native routes as OpenAPI paths, with examples; BentoML's page at / shows them."""

import json
from typing import Any

from service.choice import CHOOSE_FORM
from service.errors import (
    ArtifactError,
    CannotForecastError,
    CapacityError,
    DrainingError,
    ForbiddenError,
    IdempotencyConflictError,
    InvalidJsonError,
    MethodNotAllowedError,
    ModelConflictError,
    NotFiniteError,
    RequestError,
    ResultNotFiniteError,
    SessionGoneError,
    SessionNotFoundError,
    ShapeError,
    StepConflictError,
    StoreUnavailableError,
    TooLongError,
    UnauthorizedError,
    UnknownModelError,
    UnknownTokenError,
)
from service.protocols.openapi_copies import copy_paths
from service.protocols.openapi_form import (
    ERROR_SCHEMA,
    IDEMPOTENCY_KEY,
    json_media,
    one_or_many,
    operation,
)

_REQUEST = {"session_id": "pump-7", "x": [[0.1], [0.2]], "step": 0}
_ANSWER = {
    "session_id": "pump-7",
    "model": "sine-cell",
    "version": "0123456789abcdef",
    "step": 2,
    "created": True,
    "y": [[0.15], [0.24]],
}
_SESSION = {key: _ANSWER[key] for key in ("session_id", "model", "version", "step")}
_NEXT_LINE = '{"session_id": "pump-8", "x": [[0.3]]}'

_FORECAST = {"session_id": "pump-7", "horizon": 2}
_FORECAST_LINES: list[dict[str, object]] = [
    {**_SESSION, "horizon": 2},
    {"step": 2, "y": [0.24]},
    {"step": 3, "y": [0.35]},
    {"done": True, "step": 4},
]

_REQUEST_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["session_id", "x"],
    "additionalProperties": False,
    "properties": {
        "session_id": {"type": "string", "minLength": 1, "maxLength": 256},
        "x": {
            "oneOf": [
                {"type": "array", "minItems": 1, "items": {}},
                {"type": "string", "minLength": 1},
            ],
            "description": "Rows of (time, ...), raw units, as GET /models says under `ports`; for "
            "a model with a `vocabulary` also text, or a list of its tokens.",
        },
        "step": {
            "type": "integer",
            "minimum": 0,
            "nullable": True,
            "description": "The index of the first row; makes a retry safe.",
        },
        "model": {"type": "string", "nullable": True, "description": "`name` or `name:version`."},
        "want": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string"},
            "nullable": True,
            "description": "Which fields of the result the reply should hold, of those that GET "
            "/models lists under `reply`; all, if absent.",
        },
        "choose": {
            "type": "object",
            "nullable": True,
            "description": "How a token or class is chosen from its logits, instead of as the "
            f"model's pipeline says: {CHOOSE_FORM}.",
        },
    },
}
_FORECAST_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["horizon"],
    "additionalProperties": False,
    "properties": {
        **_REQUEST_SCHEMA["properties"],
        "session_id": {
            **_REQUEST_SCHEMA["properties"]["session_id"],
            "nullable": True,
            "description": "Where to go on from; without it from the model's initial state, and "
            "then `x` is needed.",
        },
        "horizon": {"type": "integer", "minimum": 1, "description": "Steps to forecast."},
        "x": {
            **_REQUEST_SCHEMA["properties"]["x"],
            "nullable": True,
            "description": "Rows that are read first, as those of /predict; the session does not "
            "move.",
        },
        "step": {
            "type": "integer",
            "minimum": 0,
            "nullable": True,
            "description": "Where the session must stand.",
        },
        "samples": {
            "type": "integer",
            "minimum": 1,
            "nullable": True,
            "description": "So many ways to go on, drawn by chance; each field of a line is then "
            "a list, one element a sample.",
        },
        "seed": {
            "type": "integer",
            "minimum": 0,
            "nullable": True,
            "description": "Of what is drawn, before that of `choose`. The same seed draws the "
            "same again.",
        },
    },
}
_LINE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "First {session_id, model, version, step, horizon}, then a line a step, then "
    "{done, step}; or {error} as the last one.",
    "properties": {
        "step": {"type": "integer", "description": "The index of the step that is forecast."},
        "y": {
            "type": "array",
            "items": {},
            "description": "One row, raw units: the forecast of this step; of text, the logits of "
            "the token at it.",
        },
        "text": {"type": "string", "description": "The character that is chosen for this step."},
        "tokens": {"type": "string", "description": "The same where tokens are longer."},
    },
}
_ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "session_id": {"type": "string"},
        "model": {"type": "string"},
        "version": {"type": "string"},
        "step": {"type": "integer", "description": "The index of the next step."},
        "created": {"type": "boolean", "description": "Whether this request began the session."},
        "y": {"type": "array", "items": {}, "description": "Rows of (time, ...), raw units."},
        "text": {
            "type": "string",
            "description": "Of a model with a vocabulary of characters: the one chosen at each "
            "step, from the logits in `y`.",
        },
        "tokens": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The same where tokens are longer.",
        },
        "labels": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Of a model with `classes`: the one chosen at each step.",
        },
        "probabilities": {
            "type": "array",
            "items": {},
            "description": "Of a model with `classes`: softmax of `y`, (time, classes).",
        },
        "alarm": {
            "type": "array",
            "items": {"type": "boolean"},
            "description": "Of a model with an `alarm`: whether the score in `y` is above the "
            "threshold.",
        },
    },
}
_REFUSED_SCHEMA: dict[str, Any] = {
    **ERROR_SCHEMA,
    "required": ["error", "status"],
    "properties": {
        **ERROR_SCHEMA["properties"],
        "status": {"type": "integer", "description": "What it would have been, sent alone."},
        "session_id": {"type": "string"},
        "step": {"type": "integer", "description": "The request's, if it had one."},
    },
}


def native_paths() -> dict[str, dict[str, Any]]:
    """path -> OpenAPI path item."""
    caller = (UnauthorizedError, ForbiddenError)
    run = (
        InvalidJsonError,
        RequestError,
        ShapeError,
        UnknownTokenError,
        NotFiniteError,
        *caller,
        UnknownModelError,
        MethodNotAllowedError,
        StepConflictError,
        ModelConflictError,
        SessionGoneError,
        TooLongError,
        ResultNotFiniteError,
        CapacityError,
        DrainingError,
        ArtifactError,
    )
    one_session = (*caller, SessionNotFoundError, MethodNotAllowedError)
    session_id = {
        "name": "session_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "example": "pump-7",
    }
    return {
        "/predict": {
            "post": operation(
                "predict",
                "Advance one session by the rows of `x`, and begin it if there is none. An array "
                "of bodies is answered by an array, in the same order: each element a reply, or "
                "{error, status, session_id, step}.",
                json_media(one_or_many(_ANSWER_SCHEMA, _REFUSED_SCHEMA), _ANSWER),
                (*run, IdempotencyConflictError),
                parameters=[IDEMPOTENCY_KEY],
                requestBody={
                    "required": True,
                    "content": json_media(one_or_many(_REQUEST_SCHEMA), _REQUEST),
                },
            )
        },
        "/stream": {
            "post": operation(
                "stream",
                "Lines of /predict bodies in, lines of replies out as each is done; any number of "
                'sessions. A refused line is answered by {"error", "line", "session_id"}.',
                {"application/x-ndjson": {"schema": _ANSWER_SCHEMA, "example": _ANSWER}},
                (*caller, MethodNotAllowedError, DrainingError),
                requestBody={
                    "required": True,
                    "content": {
                        "application/x-ndjson": {
                            "schema": _REQUEST_SCHEMA,
                            "example": '{"session_id": "pump-7", "x": [[0.1]]}\n' + _NEXT_LINE,
                        }
                    },
                },
            )
        },
        "/forecast": {
            "post": operation(
                "forecast",
                "What the model would go on with from a session's state, its own output as its "
                "next input; a line a step, as NDJSON or as server-sent events. The session is "
                "left as it is.",
                {
                    "application/x-ndjson": {
                        "schema": _LINE_SCHEMA,
                        "example": "\n".join(map(json.dumps, _FORECAST_LINES)),
                    },
                    "text/event-stream": {
                        "schema": {"type": "string"},
                        "example": "event: step\nid: 2\ndata: " + json.dumps(_FORECAST_LINES[1]),
                    },
                },
                (*run, CannotForecastError, SessionNotFoundError),
                requestBody={"required": True, "content": json_media(_FORECAST_SCHEMA, _FORECAST)},
            )
        },
        "/sessions/{session_id}": {
            "get": operation(
                "look_up",
                "Where a session stands.",
                json_media({"type": "object"}, _SESSION),
                one_session,
                parameters=[session_id],
            ),
            "delete": operation(
                "drop",
                "Forget a session.",
                json_media({"type": "object"}, {**_SESSION, "dropped": True}),
                one_session,
                parameters=[session_id],
            ),
        },
        **copy_paths(session_id),
        "/models": {
            "get": operation(
                "models",
                "What is served.",
                json_media({"type": "object"}, None),
                (*caller, MethodNotAllowedError),
            )
        },
        "/readyz": {
            "get": operation(
                "readyz",
                "Whether of every configured model a version passed its self-test on this machine, "
                "and the store of the sessions is there.",
                json_media(
                    {"type": "object"},
                    {"status": "ready", "models": ["sine-cell:0123456789abcdef"]},
                ),
                (ArtifactError, DrainingError, StoreUnavailableError),
            )
        },
    }
