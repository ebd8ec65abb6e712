"""The bodies of /predict, /stream, /forecast and of what tells what there is: schemas, examples.

Schemas are OpenAPI 3.0's. Of a route that answers an example of a request, the example of the
reply with the same name is that answer, but for the numbers: a test sends each to a server.
"""

from typing import Any

from service.choice import CHOOSE_FORM
from service.errors import ArtifactError, SessionGoneError
from service.protocols.openapi_errors import error_example

SINE_VERSION, OTHER_VERSION = "0123456789abcdef", "89abcdef01234567"  # of sine-cell
TEXT_VERSION = "76543210fedcba98"
MAX_SESSION_ID = {"type": "string", "minLength": 1, "maxLength": 256}
STEP = {"type": "integer", "minimum": 0}


def closed(required: tuple[str, ...], properties: dict[str, Any]) -> dict[str, Any]:
    """An object of these fields and no other."""
    needed = {"required": list(required)} if required else {}  # an empty list is no OpenAPI
    return {"type": "object", **needed, "additionalProperties": False, "properties": properties}


# One session ------------------------------------------------------------------------------------

SESSION_FIELDS: dict[str, Any] = {
    "session_id": {"type": "string"},
    "model": {"type": "string"},
    "version": {"type": "string"},
    "step": {**STEP, "description": "The index of the next step."},
}
SESSION_SCHEMA = closed(tuple(SESSION_FIELDS), SESSION_FIELDS)
SESSION = {"session_id": "pump-7", "model": "sine-cell", "version": SINE_VERSION, "step": 2}

# POST /predict, and a line of POST /stream -------------------------------------------------------

PREDICT_SCHEMA = closed(
    ("session_id", "x"),
    {
        "session_id": MAX_SESSION_ID,
        "x": {
            "oneOf": [
                {"type": "array", "minItems": 1, "items": {}},
                {"type": "string", "minLength": 1},
            ],
            "description": "Rows of (time, ...), raw units, as GET /models says under `ports`; for "
            "a model with a `vocabulary` also text, or a list of its tokens.",
        },
        "step": {
            **STEP,
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
)
ANSWER_SCHEMA = closed(
    (*SESSION_FIELDS, "created"),
    {
        **SESSION_FIELDS,
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
)
PREDICT = {
    "numbers": {"session_id": "pump-7", "x": [[0.1], [0.2]], "step": 0},
    "text": {"session_id": "file-1", "model": "char-rnn", "x": "def ", "want": ["text"]},
    "many": [
        {"session_id": "pump-7", "x": [[0.1]], "step": 0},
        {"session_id": "pump-8", "x": [[0.3]], "step": 5},
    ],
}
ANSWERS: dict[str, object] = {
    "numbers": {**SESSION, "created": True, "y": [[0.15], [0.24]]},
    "text": {
        "session_id": "file-1",
        "model": "char-rnn",
        "version": TEXT_VERSION,
        "step": 4,
        "created": True,
        "text": "ef x",
    },
    "many": [
        {**SESSION, "step": 1, "created": True, "y": [[0.15]]},
        {**error_example(SessionGoneError), "status": 410, "session_id": "pump-8", "step": 5},
    ],
}
PREDICT_MANY_SCHEMA: dict[str, Any] = {
    "oneOf": [
        PREDICT_SCHEMA,
        {
            "type": "array",
            "minItems": 1,
            "items": PREDICT_SCHEMA,
            "description": "Of any number of sessions; each is answered, or refused, in its place.",
        },
    ]
}
REFUSED_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error", "status"],
    "description": "What was refused of an array, with the status that it would have had alone.",
    "properties": {
        "error": {"type": "object"},
        "status": {"type": "integer"},
        "session_id": {"type": "string"},
        "step": STEP,
    },
}
ANSWER_MANY_SCHEMA: dict[str, Any] = {
    "oneOf": [
        ANSWER_SCHEMA,
        {"type": "array", "minItems": 1, "items": {"anyOf": [ANSWER_SCHEMA, REFUSED_SCHEMA]}},
    ]
}
LINE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "A reply as that of /predict; or {error, line, session_id?, step?} of a line "
    "that was refused, `line` from 1.",
    "properties": {
        **ANSWER_SCHEMA["properties"],
        "error": {"type": "object"},
        "line": {"type": "integer", "minimum": 1},
    },
}
STREAM = [
    {"session_id": "pump-7", "x": [[0.1]], "step": 0},
    {"session_id": "pump-8", "x": [[0.3]]},
]
STREAM_ANSWERS = [
    {**SESSION, "step": 1, "created": True, "y": [[0.15]]},
    {**SESSION, "session_id": "pump-8", "step": 1, "created": True, "y": [[0.31]]},
]

# POST /forecast ---------------------------------------------------------------------------------

FORECAST_SCHEMA = closed(
    ("horizon",),
    {
        **PREDICT_SCHEMA["properties"],
        "session_id": {
            **MAX_SESSION_ID,
            "nullable": True,
            "description": "Where to go on from; without it from the model's initial state, and "
            "then `x` is needed.",
        },
        "horizon": {"type": "integer", "minimum": 1, "description": "Steps to forecast."},
        "x": {
            **PREDICT_SCHEMA["properties"]["x"],
            "nullable": True,
            "description": "Rows that are read first, as those of /predict; the session does not "
            "move.",
        },
        "step": {**STEP, "nullable": True, "description": "Where the session must stand."},
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
)
FORECAST_LINE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "First {session_id, model, version, step, horizon, samples?}, then a line a "
    "step, then {done, step}; or {error} as the last one.",
    "properties": {
        "step": {"type": "integer", "description": "The index of the step that is forecast."},
        "y": {
            "type": "array",
            "items": {},
            "description": "One row, raw units: the forecast of this step; of text, the logits of "
            "the token at it. With `samples`, a row of each.",
        },
        "text": {
            "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "description": "The character that is chosen for this step, or of each sample.",
        },
        "tokens": {
            "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "description": "The same where tokens are longer.",
        },
    },
}
FORECASTS = {
    "of_a_session": {"session_id": "pump-7", "horizon": 2},
    "samples_of_text": {
        "model": "char-rnn",
        "x": "def ",
        "horizon": 2,
        "samples": 3,
        "seed": 7,
        "want": ["text"],
        "choose": {"method": "sample"},
    },
}
FORECAST_LINES: dict[str, list[dict[str, object]]] = {
    "of_a_session": [
        {**SESSION, "horizon": 2},
        {"step": 2, "y": [0.24]},
        {"step": 3, "y": [0.35]},
        {"done": True, "step": 4},
    ],
    "samples_of_text": [
        {
            "session_id": None,
            "model": "char-rnn",
            "version": TEXT_VERSION,
            "step": 4,
            "horizon": 2,
            "samples": 3,
        },
        {"step": 4, "text": ["x", "f", "x"]},
        {"step": 5, "text": ["(", " ", ":"]},
        {"done": True, "step": 6},
    ],
}

# What is served ---------------------------------------------------------------------------------

_PORT = {"dtype": "float32", "shape": ["B", "T", 1]}
_STATE = {"dtype": "float32", "shape": ["B", 1, 8]}
MODEL = {
    "name": "sine-cell",
    "version": SINE_VERSION,
    "variant": "onnx-fp32",
    "mode": "causal",
    "ports": {
        "x": _PORT,
        "y": _PORT,
        "states": [
            {**_STATE, "name": "h", "input": "h_0", "output": "h_n"},
            {**_STATE, "name": "c", "input": "c_0", "output": "c_n"},
        ],
    },
    "pipeline": {},
    "reply": ["y"],
    "forecast": True,
    "newest": True,
}
BROKEN = {"name": "series-lstm", "version": "fedcba9876543210", **error_example(ArtifactError)}
MODELS = {
    "models": [MODEL],
    "broken": [BROKEN],
    "promoted": {"sine-cell": {SINE_VERSION: OTHER_VERSION}},
}
MODELS_SCHEMA = closed(
    tuple(MODELS),
    {
        "models": {
            "type": "array",
            "description": "What is loaded: its ports (the shape of `x` and `y`; B batch, T time), "
            "what its pipeline does, the fields of its replies, whether it can forecast.",
            "items": closed(
                tuple(MODEL),
                {
                    **{key: {"type": "string"} for key in ("name", "version", "variant", "mode")},
                    **{key: {"type": "object"} for key in ("ports", "pipeline")},
                    "reply": {"type": "array", "items": {"type": "string"}},
                    **{key: {"type": "boolean"} for key in ("forecast", "newest")},
                },
            ),
        },
        "broken": {
            "type": "array",
            "items": {"type": "object"},
            "description": "What could not be loaded: {name, version, error}.",
        },
        "promoted": {"type": "object", "description": "name -> {from: to}, of versions."},
    },
)
READY_SCHEMA = closed(
    ("status",),
    {
        "status": {"type": "string"},
        "models": {
            "type": "array",
            "items": {"type": "string"},
            "description": "For holders of a key, where there are keys.",
        },
    },
)
READY = {"status": "ready", "models": [f"sine-cell:{SINE_VERSION}"]}
