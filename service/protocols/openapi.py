"""The native routes as OpenAPI paths, with examples; BentoML's page at / shows them."""

import json
from collections.abc import Iterable
from typing import Any

from service.errors import (
    ArtifactError,
    BadEncodingError,
    CannotForecastError,
    CapacityError,
    DrainingError,
    ForbiddenError,
    IdempotencyConflictError,
    InvalidJsonError,
    MethodNotAllowedError,
    ModelConflictError,
    ModelLoadingError,
    NotFiniteError,
    RequestError,
    ResultNotFiniteError,
    SessionGoneError,
    SessionNotFoundError,
    ShapeError,
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
from service.protocols.openapi_bodies import (
    ANSWER_MANY_SCHEMA,
    ANSWERS,
    FORECAST_LINE_SCHEMA,
    FORECAST_LINES,
    FORECAST_SCHEMA,
    FORECASTS,
    LINE_SCHEMA,
    MODELS,
    MODELS_SCHEMA,
    PREDICT,
    PREDICT_MANY_SCHEMA,
    PREDICT_SCHEMA,
    READY,
    READY_SCHEMA,
    SESSION,
    SESSION_SCHEMA,
    STREAM,
    STREAM_ANSWERS,
    closed,
)
from service.protocols.openapi_copies import copy_paths
from service.protocols.openapi_form import IDEMPOTENCY_KEY, TIMEOUT, json_media, media, operation

CALLER = (UnauthorizedError, ForbiddenError)
CODING = (UnsupportedEncodingError, BadEncodingError)
ROWS = (  # of what runs a model on rows
    *(InvalidJsonError, RequestError, ShapeError, UnknownTokenError, NotFiniteError),
    *(*CALLER, *CODING, UnknownModelError, MethodNotAllowedError),
    *(StepConflictError, ModelConflictError, TooLongError, ResultNotFiniteError),
    *(CapacityError, StoreUnavailableError, ModelLoadingError, DrainingError, ArtifactError),
)
SESSION_ID = {
    "name": "session_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "example": "pump-7",
}


def native_paths() -> dict[str, dict[str, Any]]:
    """path -> OpenAPI path item."""
    one_session = (*CALLER, SessionNotFoundError, MethodNotAllowedError, StoreUnavailableError)
    drop_schema = closed(
        (*SESSION_SCHEMA["required"], "dropped"),
        {**SESSION_SCHEMA["properties"], "dropped": {"type": "boolean"}},
    )
    return {
        "/predict": {
            "post": operation(
                "predict",
                "Advance one session by the rows of `x`, and begin it if there is none; or many "
                "sessions, by an array of such bodies.",
                json_media(ANSWER_MANY_SCHEMA, **ANSWERS),
                (
                    *(*ROWS, SessionGoneError, StoreFullError),
                    *(IdempotencyConflictError, TimedOutError),
                ),
                parameters=(IDEMPOTENCY_KEY, TIMEOUT),
                requestBody={
                    "required": True,
                    "content": json_media(PREDICT_MANY_SCHEMA, **PREDICT),
                },
            )
        },
        "/stream": {
            "post": operation(
                "stream",
                "Lines of /predict bodies in, lines of replies out as each is done; any number of "
                'sessions. A refused line is answered by {"error", "line", "session_id"}.',
                media("application/x-ndjson", LINE_SCHEMA, sessions=_lines(STREAM_ANSWERS)),
                (
                    *(*CALLER, RequestError, UnsupportedEncodingError),
                    *(MethodNotAllowedError, DrainingError),
                ),
                parameters=(TIMEOUT,),
                requestBody={
                    "required": True,
                    "content": media(
                        "application/x-ndjson", PREDICT_SCHEMA, sessions=_lines(STREAM)
                    ),
                },
            )
        },
        "/ws": {
            "get": operation(
                "ws",
                "A WebSocket: /predict bodies as text frames in, replies as text frames out, or "
                "many sessions in a binary frame; docs/serving.md has the layout.",
                {},
                (
                    *CALLER,
                    MethodNotAllowedError,
                    UpgradeRequiredError,
                    CapacityError,
                    DrainingError,
                ),
                done="101",
            )
        },
        "/forecast": {
            "post": operation(
                "forecast",
                "What the model would go on with from a session's state, its own output as its "
                "next input; a line a step, as NDJSON or as server-sent events. The session is "
                "left as it is.",
                {
                    **media(
                        "application/x-ndjson",
                        FORECAST_LINE_SCHEMA,
                        **{name: _lines(lines) for name, lines in FORECAST_LINES.items()},
                    ),
                    **media(
                        "text/event-stream",
                        {"type": "string"},
                        of_a_session=_events(FORECAST_LINES["of_a_session"]),
                    ),
                },
                (*ROWS, CannotForecastError, SessionNotFoundError, SessionGoneError),
                parameters=(TIMEOUT,),
                requestBody={"required": True, "content": json_media(FORECAST_SCHEMA, **FORECASTS)},
            )
        },
        "/sessions/{session_id}": {
            "get": operation(
                "look_up",
                "Where a session stands.",
                json_media(SESSION_SCHEMA, session=SESSION),
                one_session,
                parameters=(SESSION_ID,),
            ),
            "delete": operation(
                "drop",
                "Forget a session.",
                json_media(drop_schema, session={**SESSION, "dropped": True}),
                one_session,
                parameters=(SESSION_ID,),
            ),
        },
        **copy_paths(SESSION_ID),
        "/models": {
            "get": operation(
                "models",
                "What is served.",
                json_media(MODELS_SCHEMA, one_model=MODELS),
                (*CALLER, MethodNotAllowedError),
            )
        },
        "/readyz": {
            "get": operation(
                "readyz",
                "Whether of every configured model a version passed its self-test on this machine, "
                "and the store of the sessions is there.",
                json_media(READY_SCHEMA, ready=READY),
                (ArtifactError, DrainingError, StoreUnavailableError, MethodNotAllowedError),
                needs_key=False,
            )
        },
    }


def _lines(bodies: Iterable[object]) -> str:
    return "".join(json.dumps(body) + "\n" for body in bodies)


def _events(lines: list[dict[str, object]]) -> str:
    start, *steps, done = lines
    events = [f"event: start\ndata: {json.dumps(start)}\n\n"]
    events += [f"event: step\nid: {step['step']}\ndata: {json.dumps(step)}\n\n" for step in steps]
    return "".join([*events, f"event: done\ndata: {json.dumps(done)}\n\n"])
