"""The routes of the Open Inference Protocol as OpenAPI paths; the protocol itself says more."""

from http import HTTPStatus
from typing import Any

from service.protocols.openapi_form import KEYS, OF_STATUS, REPLY_ID, REQUEST_ID, TAG, json_media
from service.protocols.v2.metadata import server_metadata

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {"error": {"type": "string"}},
}
_OBJECT: dict[str, Any] = {"type": "object"}
_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "sequence_id": {
            "oneOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "maxLength": 256},
            ],
            "description": 'The session; 0 and "" mean none: each row is then a sequence of its '
            "own, from the initial state.",
        },
        "sequence_start": {"type": "boolean", "description": "Begin it, anew where it lives."},
        "sequence_end": {"type": "boolean", "description": "Forget it once this is done."},
        "step": {
            "type": "integer",
            "minimum": 0,
            "description": "The index of the first row; makes a retry safe.",
        },
        "idempotency_key": {
            "type": "string",
            "minLength": 1,
            "maxLength": 255,
            "description": "Another name for `step`, as the header Idempotency-Key is.",
        },
        "timeout": {"type": "integer", "minimum": 0, "description": "Microseconds; then 504."},
        "priority": {"type": "integer", "minimum": 0, "description": "Changes nothing."},
        "binary_data_output": {
            "type": "boolean",
            "description": "Outputs leave as bytes after the JSON.",
        },
    },
}
_INFER: dict[str, Any] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "description": "Comes back in the reply."},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype"],
                "properties": {
                    "name": {"type": "string", "enum": ["x"]},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
                    "datatype": {"type": "string", "example": "FP32"},
                    "parameters": {"type": "object"},
                    "data": {
                        "type": "array",
                        "items": {},
                        "description": "Flat, or nested as the shape says; raw units.",
                    },
                },
            },
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
            },
            "description": "Those wanted; all, if absent.",
        },
        "parameters": _PARAMETERS,
    },
}
_INFERENCE = {
    "id": "1",
    "inputs": [{"name": "x", "shape": [1, 2, 1], "datatype": "FP32", "data": [0.1, 0.2]}],
    "parameters": {"sequence_id": 42, "sequence_start": True},
}
_REPLY = {
    "model_name": "sine-cell",
    "model_version": "0123456789abcdef",
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2, 1], "data": [0.15, 0.24]}],
    "id": "1",
    "parameters": {"sequence_id": 42, "step": 2, "created": True, "restarted": False},
}
_MODEL: dict[str, Any] = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "example": "sine-cell",
}
_VERSION = {**_MODEL, "name": "version", "example": "0123456789abcdef"}
_DOOR = (401, 403)  # who may not
_OF_BODIES = (400, 413, 415)
_OF_MODELS = (*_DOOR, 404, 405, 503)
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def v2_paths() -> dict[str, dict[str, Any]]:
    """path -> OpenAPI path item."""
    server = server_metadata()
    paths = {
        "/v2": _get("server", "The server, and its extensions.", _json(server), (*_DOOR, 405)),
        "/v2/health/live": _get(
            "live", "200 while it answers.", _json({"live": True}), (405,), needs_key=False
        ),
        "/v2/health/ready": _get(
            "ready",
            "200 while every model and the store of the sessions are there.",
            _json({"ready": True}),
            (405, 503),
            needs_key=False,
        ),
        "/v2/models/stats": _get(
            "stats", "What every model has done.", _json({"model_stats": []}), (*_DOOR, 405)
        ),
        "/v2/repository/index": {
            "post": _operation(
                "index",
                "Every version of every model, with its state.",
                json_media({"type": "array", "items": _OBJECT}),
                (*_OF_BODIES, *_DOOR, 405),
                requestBody={
                    "content": json_media(
                        {"type": "object", "properties": {"ready": {"type": "boolean"}}},
                        ready={"ready": True},
                    )
                },
            )
        },
    }
    for start, suffix, named in (
        ("/v2/models/{model}", "", [_MODEL]),
        ("/v2/models/{model}/versions/{version}", "_of_version", [_MODEL, _VERSION]),
    ):
        paths |= {start + end: item for end, item in _of_model(suffix, named).items()}
    return paths


def _of_model(suffix: str, named: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    def get(name: str, summary: str, content: dict[str, Any]) -> dict[str, Any]:
        return _get(f"{name}{suffix}", summary, content, _OF_MODELS, parameters=named)

    return {
        "": get("model", "Its inputs and outputs.", json_media(_OBJECT)),
        "/ready": get("model_ready", "200 while it can be asked.", json_media(_OBJECT)),
        "/config": get("config", "Triton's configuration of it.", json_media(_OBJECT)),
        "/stats": get("model_stats", "What it has done.", json_media(_OBJECT)),
        "/infer": {
            "post": _operation(
                f"infer{suffix}",
                "An inference: rows of a sequence, or of sequences that leave nothing behind. "
                "Tensors may follow the JSON as bytes (Triton's binary tensor extension).",
                json_media(_OBJECT, reply=_REPLY) | _BYTES,
                (*_OF_BODIES, *_OF_MODELS, 409, 410, 422, 429, 504),
                parameters=named,
                requestBody={"required": True, "content": json_media(_INFER, sequence=_INFERENCE)},
            )
        },
    }


def _json(example: object) -> dict[str, Any]:
    return json_media(_OBJECT, reply=example)


def _get(
    name: str, summary: str, content: dict[str, Any], statuses: tuple[int, ...], **more: Any
) -> dict[str, Any]:
    return {"get": _operation(name, summary, content, statuses, **more)}


def _operation(
    name: str,
    summary: str,
    content: dict[str, Any],
    statuses: tuple[int, ...],
    *,
    parameters: list[dict[str, Any]] | None = None,
    needs_key: bool = True,
    **more: Any,
) -> dict[str, Any]:
    return {
        "tags": [TAG],
        "operationId": f"carousel__v2_{name}",
        "summary": summary,
        "parameters": [*(parameters or []), REQUEST_ID],
        "security": KEYS if needs_key else [{}],
        **more,
        "responses": {
            "200": {"description": "Done.", "headers": REPLY_ID, "content": content},
            **{str(status): _refusal(status) for status in sorted(statuses)},
        },
    }


def _refusal(status: int) -> dict[str, Any]:
    return {
        "description": f"{HTTPStatus(status).phrase}: what came, what was expected, what to do.",
        "headers": {**REPLY_ID, **OF_STATUS.get(status, {})},
        "content": json_media(_ERROR),
    }
