"""What every operation of the OpenAPI page has in common: its tag, its errors, their shape."""

from typing import Any

from service.errors import CarouselError

TAG = "Carousel"

ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "additionalProperties": True,
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}


IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]*$"},
    "description": "Chosen by the client, another for each request; the same one again says that "
    "it is the same request again. Not needed where there is a `step`.",
}


def operation(
    name: str,
    summary: str,
    content: dict[str, Any],
    errors: tuple[type[CarouselError], ...],
    **more: Any,
) -> dict[str, Any]:
    return {
        "tags": [TAG],
        "operationId": f"carousel__{name}",
        "summary": summary,
        **more,
        "responses": {"200": {"description": "Done.", "content": content}, **_refusals(errors)},
    }


def _refusals(errors: tuple[type[CarouselError], ...]) -> dict[str, Any]:
    by_status: dict[str, list[type[CarouselError]]] = {}
    for error in errors:
        by_status.setdefault(str(error.status), []).append(error)
    return {
        status: {
            "description": " ".join(f"`{e.code}`: {e.__doc__}" for e in members),
            "content": json_media(
                ERROR_SCHEMA, {"error": {"code": members[0].code, "message": members[0].__doc__}}
            ),
        }
        for status, members in sorted(by_status.items())
    }


def json_media(schema: dict[str, Any], example: object) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": schema}
    if example is not None:
        media["example"] = example
    return {"application/json": media}


def one_or_many(one: dict[str, Any], *other: dict[str, Any]) -> dict[str, Any]:
    """`one`, or an array whose elements are `one` or an `other`."""
    items = {"anyOf": [one, *other]} if other else one
    return {"oneOf": [one, {"type": "array", "minItems": 1, "items": items}]}
