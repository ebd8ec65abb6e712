"""What every operation of the OpenAPI page has in common: its tag, keys, headers and errors."""

from typing import Any

from service.errors import CarouselError
from service.protocols.openapi_errors import error_example

TAG = "Carousel"

ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "additionalProperties": True,
            "properties": {
                "code": {"type": "string", "description": "What a program matches on."},
                "message": {
                    "type": "string",
                    "description": "What came, what was expected, what to do; for people.",
                },
            },
        }
    },
}
SECURITY_SCHEMES: dict[str, Any] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, where the server has any.",
    },
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same key in another header.",
    },
}
KEYS: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"apiKey": []}]  # {}: it may have none
REQUEST_ID: dict[str, Any] = {
    "name": "X-Request-ID",
    "in": "header",
    "schema": {"type": "string"},
    "description": "The client's name for the request: up to 128 letters, digits and ._:/=+-; in "
    "the reply, the log and the spans. Another is replaced by one of the server's.",
    "example": "pump-7-000123",
}
IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]*$"},
    "description": "Another name for `step`: sent again with the same key, the last request of the "
    "session gets its reply again, and is not run twice. A new one for each request; a UUID will "
    "do. Not beside `step`, which says the same.",
    "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
}
TIMEOUT: dict[str, Any] = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "schema": {"type": "integer", "minimum": 1},
    "description": "How long the client waits, in milliseconds, each line of a stream for itself "
    "from when it was read; what is not done by then is refused (504), and was not done.",
    "example": 30000,
}
REPLY_ID: dict[str, Any] = {
    "X-Request-ID": {
        "description": "The request's, or one made here.",
        "schema": {"type": "string"},
        "example": "pump-7-000123",
    }
}
RETRY_AFTER: dict[str, Any] = {
    "Retry-After": {
        "description": "Seconds after which the same request may succeed.",
        "schema": {"type": "integer"},
        "example": 1,
    }
}
OF_STATUS: dict[int, dict[str, Any]] = {  # headers of a refusal
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "example": 'Bearer realm="carousel"'}},
    405: {"Allow": {"schema": {"type": "string"}, "example": "POST"}},
    415: {"Accept-Encoding": {"schema": {"type": "string"}, "example": "gzip, deflate"}},
    429: RETRY_AFTER,
    503: RETRY_AFTER,
}


def operation(
    name: str,
    summary: str,
    content: dict[str, Any],
    errors: tuple[type[CarouselError], ...],
    *,
    parameters: tuple[dict[str, Any], ...] = (),
    needs_key: bool = True,
    done: str = "200",
    **more: Any,
) -> dict[str, Any]:
    """One operation; `done` is the status of what was asked for."""
    return {
        "tags": [TAG],
        "operationId": f"carousel__{name}",
        "summary": summary,
        "parameters": [*parameters, REQUEST_ID],
        "security": KEYS if needs_key else [{}],
        **more,
        "responses": {
            done: {"description": "Done.", "headers": REPLY_ID, "content": content},
            **_refusals(errors),
        },
    }


def _refusals(errors: tuple[type[CarouselError], ...]) -> dict[str, Any]:
    by_status: dict[int, list[type[CarouselError]]] = {}
    for error in dict.fromkeys(errors):
        by_status.setdefault(error.status, []).append(error)
    return {
        str(status): {
            "description": " ".join(f"`{e.code}`: {_first_line(e)}" for e in members),
            "headers": {**REPLY_ID, **OF_STATUS.get(status, {})},
            "content": {
                "application/json": {
                    "schema": ERROR_SCHEMA,
                    "examples": {
                        e.code: {"summary": _first_line(e), "value": error_example(e)}
                        for e in members
                    },
                }
            },
        }
        for status, members in sorted(by_status.items())
    }


def _first_line(error: type[CarouselError]) -> str:
    return (error.__doc__ or "").partition("\n")[0]


def json_media(schema: dict[str, Any], **examples: object) -> dict[str, Any]:
    """A body of JSON, with an example of each name."""
    return media("application/json", schema, **examples)


def media(kind: str, schema: dict[str, Any], **examples: object) -> dict[str, Any]:
    """A body of that content type."""
    shown = {
        name: {"summary": name.replace("_", " "), "value": value}
        for name, value in examples.items()
    }
    return {kind: {"schema": schema, "examples": shown}}
