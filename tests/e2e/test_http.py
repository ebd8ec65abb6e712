"""The native routes of a real `bentoml serve`."""

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from service.model import Model
from tests.e2e.conftest import Server

Array = np.ndarray


def sequence(model: str, steps: int, seed: int) -> Array:
    """Raw rows for one of the two models."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(steps, 1)) if model == "sine-cell" else rng.normal(20, 3, (steps, 8))


def whole(model: Model, x: Array) -> list[list[float]]:
    """What JSON says of y of one sequence, run whole and alone in this process."""
    (y,), _, _ = model.run([model.encode(x)], [model.initial_state])
    return [[float(str(value)) for value in row] for row in model.decode(y)]


@pytest.fixture
def session_id(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def predict(client: httpx.Client, session_id: str, x: object, **more: object) -> httpx.Response:
    return client.post("/predict", json={"session_id": session_id, "x": x, **more})


def test_a_session_goes_on_from_request_to_request(
    client: httpx.Client, models: dict[str, Model], session_id: str
) -> None:
    """The reply says where it stands; y is what the whole sequence gives, digit for digit."""
    x = sequence("series-lstm", 20, 0)
    replies = []
    for start, end in [(0, 1), (1, 2), (2, 12), (12, 20)]:
        reply = predict(client, session_id, x[start:end].tolist(), model="series-lstm")
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "application/json"
        replies.append(reply.json())
    model = models["series-lstm"]
    assert [{key: value for key, value in reply.items() if key != "y"} for reply in replies] == [
        {
            "session_id": session_id,
            "model": "series-lstm",
            "version": model.version,
            "step": step,
            "created": step == 1,
        }
        for step in (1, 2, 12, 20)
    ]
    assert [row for reply in replies for row in reply["y"]] == whole(model, x)


def test_a_retry_gives_the_same_bytes_and_the_state_does_not_move(
    client: httpx.Client, session_id: str
) -> None:
    """With its step, any number of times, for the first request as for the last."""
    for step in (0, 2):
        x = sequence("sine-cell", 2, step).tolist()
        first = predict(client, session_id, x, step=step, model="sine-cell")
        assert first.status_code == 200
        for _ in range(3):
            again = predict(client, session_id, x, step=step, model="sine-cell")
            assert again.content == first.content
    assert client.get(f"/sessions/{session_id}").json()["step"] == 4


def test_look_up_and_drop_tell_where_a_session_stands(
    client: httpx.Client, models: dict[str, Model], session_id: str
) -> None:
    """Its id may hold anything, escaped as in any URL."""
    name = f"{session_id}/é ?#%2F"
    path = f"/sessions/{httpx.QueryParams({'': name})!s}".replace("?=", "").replace("/=", "/")
    path = path.replace("+", "%20")
    body = {
        "session_id": name,
        "model": "sine-cell",
        "version": models["sine-cell"].version,
        "step": 3,
    }
    assert client.get(path).status_code == 404
    predict(client, name, [[1], [2], [3]], model="sine-cell")
    assert client.get(path).json() == body
    assert client.delete(path).json() == {**body, "dropped": True}
    for gone in (client.get(path), client.delete(path)):
        assert gone.status_code == 404
        assert gone.json()["error"]["code"] == "session_not_found"
        assert gone.json()["error"]["session_id"] == name


def test_models_tells_what_a_client_must_send(
    client: httpx.Client, models: dict[str, Model]
) -> None:
    """Name, version, variant, ports, and the pipeline's parts."""
    body = client.get("/models").json()
    assert body["broken"] == []
    served = {model["name"]: model for model in body["models"]}
    assert set(served) == {"sine-cell", "series-lstm", "fragile"}
    series = served["series-lstm"]
    assert (series["version"], series["variant"]) == (models["series-lstm"].version, "onnx-fp32")
    assert series["ports"]["x"] == {"dtype": "float32", "shape": ["B", "T", 8]}
    assert (series["pipeline"], series["reply"]) == ({"x": "scaled", "y": "scaled"}, ["y"])
    assert served["sine-cell"]["pipeline"] == {}


def test_health_is_bentomls_and_readiness_is_ours(client: httpx.Client) -> None:
    """Ready once every configured model passed its self-test."""
    for path in ("/livez", "/healthz"):
        assert client.get(path).status_code == 200
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["status"] == "ready"
    assert client.head("/readyz").status_code == 200
    assert "bentoml_service_request" in client.get("/metrics").text


# Bad input --------------------------------------------------------------------------------------

GOOD = [[0.5]]
BAD: dict[str, tuple[dict[str, object] | bytes, int, str, str]] = {
    "wrong width": (
        {"x": [[1, 2, 3]] * 4},
        400,
        "bad_shape",
        "`x` has shape (4, 3), expected (time, 1) from manifest port `x`",
    ),
    "wrong rank": ({"x": [1, 2]}, 400, "bad_shape", "`x` has shape (2,), expected (time, 1)"),
    "too deep": ({"x": [[[1]]]}, 400, "bad_shape", "`x` has shape (1, 1, 1), expected (time, 1)"),
    "ragged": ({"x": [[1], [1, 2]]}, 400, "bad_shape", "`x[1]` has 2 values, `x[0]` has 1 values"),
    "NaN": (b'"x":[[1],[NaN]]', 400, "not_finite", "row 1 of `x` holds nan"),
    "infinity": (b'"x":[[-Infinity]]', 400, "not_finite", "row 0 of `x` holds -inf"),
    "too large for float64": (b'"x":[[1e999]]', 400, "not_finite", "row 0 of `x` holds inf"),
    "too large for float32": (b'"x":[[1e39]]', 400, "not_finite", "row 0 of `x` is not finite in"),
    "empty": ({"x": []}, 400, "bad_shape", "(time, 1) with at least one step"),
    "an empty row": ({"x": [[]]}, 400, "bad_shape", "`x` has shape (1, 0), expected (time, 1)"),
    "strings": ({"x": [["0.5"]]}, 400, "bad_shape", '`x[0][0]` is "0.5", not a number'),
    "a boolean": ({"x": [[True]]}, 400, "bad_shape", "`x[0][0]` is true, not a number"),
    "a null": ({"x": [[None]]}, 400, "bad_shape", "`x[0][0]` is null, not a number"),
    "a text for x": ({"x": "0.5"}, 400, "bad_shape", '`x` is "0.5", not a number'),
    "no x": ({}, 400, "invalid_request", "missing required field `x`"),
    "an unknown field": ({"x": GOOD, "y": 1}, 400, "invalid_request", "unknown field `y`"),
    "a negative step": ({"x": GOOD, "step": -1}, 400, "invalid_request", "at `step`"),
    "a fractional step": ({"x": GOOD, "step": 1.5}, 400, "invalid_request", "at `step`"),
    "not JSON": (b"x=1&y=2", 400, "invalid_json", "the body is not JSON"),
    "half a body": (b'"x":[[1]', 400, "invalid_json", "the body is not JSON"),
    "a step too far": (
        {"x": GOOD, "step": 9},
        409,
        "step_conflict",
        "stands at step 2, request says 9; resend from step 2 or drop `step`",
    ),
    "an unknown model": (
        {"x": GOOD, "model": "nobody"},
        404,
        "unknown_model",
        "model `nobody` is not served, expected one of",
    ),
    "an unknown version": (
        {"x": GOOD, "model": "sine-cell:0000"},
        404,
        "unknown_model",
        "model `sine-cell:0000` is not served",
    ),
    "another model": (
        {"x": [[1.0] * 8], "model": "series-lstm"},
        409,
        "model_conflict",
        "lives on sine-cell:",
    ),
    "too many steps": (
        {"x": [[0.5]] * 16_385},
        413,
        "too_long",
        "`x` has 16385 steps, the server takes 16384 in one request; send it in several",
    ),
    "a million steps": ({"x": [[0.5]] * 1_000_000}, 413, "too_long", "1000000 steps"),
    "a body over the limit": (
        b" " * (9 << 20),
        413,
        "too_long",
        "bytes or more, the server takes 8388608",
    ),
}


def body_of(session_id: str, bad: dict[str, object] | bytes) -> bytes:
    if isinstance(bad, dict):
        return json.dumps({"session_id": session_id, **bad}).encode()
    if bad.startswith(b'"'):
        return b'{"session_id":"' + session_id.encode() + b'",' + bad + b"}"[: bad.count(b"]]")]
    return bad


@pytest.fixture
def session_at_2(client: httpx.Client, session_id: str) -> Iterator[str]:
    """A live session; whatever the test does to it must not have moved it."""
    name = session_id.replace("[", "-").strip("]")
    predict(client, name, [[0.1], [0.2]], model="sine-cell")
    before = client.get(f"/sessions/{name}").json()
    assert before["step"] == 2
    yield name
    assert client.get(f"/sessions/{name}").json() == before
    client.delete(f"/sessions/{name}")


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_gets_a_clear_error_and_moves_nothing(
    client: httpx.Client, session_at_2: str, models: dict[str, Model], bad: str
) -> None:
    """Status, code, and a message with what came and what was expected."""
    sent, status, code, message = BAD[bad]
    reply = client.post("/predict", content=body_of(session_at_2, sent))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code), reply.text
    assert message in error["message"]
    after = predict(client, session_at_2 + "-control", [[0.1], [0.2]], model="sine-cell").json()
    assert after["y"] == whole(models["sine-cell"], np.array([[0.1], [0.2]]))
    client.delete(f"/sessions/{session_at_2}-control")


def test_the_state_itself_did_not_move(
    client: httpx.Client, models: dict[str, Model], session_id: str
) -> None:
    """After every bad input in turn the next step is the one that the good input alone gives."""
    x = sequence("sine-cell", 3, 5)
    predict(client, session_id, x[:2].tolist(), model="sine-cell")
    for sent, *_ in BAD.values():
        assert client.post("/predict", content=body_of(session_id, sent)).status_code >= 400
    last = predict(client, session_id, x[2:].tolist(), step=2).json()
    assert last["y"] == whole(models["sine-cell"], x)[2:]


def test_a_chunked_body_over_the_limit_is_refused_while_it_is_read(client: httpx.Client) -> None:
    """The server does not wait for its end."""

    def endless() -> Iterator[bytes]:
        for _ in range(9 << 4):
            yield b" " * (1 << 16)

    reply = client.post("/predict", content=endless())
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_long")


def test_a_step_of_an_unknown_session_is_gone(client: httpx.Client, session_id: str) -> None:
    """410, and no session is begun."""
    reply = predict(client, session_id, GOOD, step=4, model="sine-cell")
    assert (reply.status_code, reply.json()["error"]["code"]) == (410, "session_gone")
    assert client.get(f"/sessions/{session_id}").status_code == 404


def test_a_result_that_is_not_finite_is_refused_and_moves_nothing(
    client: httpx.Client, session_id: str
) -> None:
    """422: the input is finite, the model's answer is not."""
    predict(client, session_id, [[0.5]], model="fragile")
    reply = predict(client, session_id, [[0.5], [7.0]], step=1)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "result_not_finite")
    assert reply.json()["error"]["at_step"] == 2
    assert predict(client, session_id, [[0.5]], step=1).json()["step"] == 2


def test_a_request_must_name_one_of_several_models(client: httpx.Client, session_id: str) -> None:
    """Unless its session has one."""
    reply = predict(client, session_id, GOOD)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_request")
    assert reply.json()["error"]["models"] == ["fragile", "series-lstm", "sine-cell"]
    predict(client, session_id, GOOD, model="sine-cell")
    assert predict(client, session_id, GOOD).json()["step"] == 2


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allow"),
    [
        ("GET", "/nowhere", 404, "not_found", None),
        ("POST", "/predict/", 404, "not_found", None),
        ("GET", "/sessions/", 404, "not_found", None),
        ("GET", "/predict", 405, "method_not_allowed", "POST"),
        ("PUT", "/stream", 405, "method_not_allowed", "POST"),
        ("POST", "/models", 405, "method_not_allowed", "GET"),
        ("POST", "/sessions/s", 405, "method_not_allowed", "GET, DELETE"),
        ("POST", "/livez", 405, "method_not_allowed", "GET, HEAD"),
        ("DELETE", "/readyz", 405, "method_not_allowed", "GET"),
    ],
)
def test_unknown_routes_and_methods_are_refused_in_the_same_shape(
    client: httpx.Client, method: str, path: str, status: int, code: str, allow: str | None
) -> None:
    """Also where BentoML's own router would have answered."""
    reply = client.request(method, path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert reply.json()["error"]["message"]
    assert reply.headers.get("allow") == allow


# Many at once -----------------------------------------------------------------------------------


def test_fifty_sessions_interleaved_at_random_equal_fifty_separate_ones(
    server: Server, models: dict[str, Model]
) -> None:
    """Both models, any chunking, retries in between: bit for bit."""
    rng = random.Random(7)
    names = [rng.choice(["sine-cell", "series-lstm"]) for _ in range(50)]
    inputs = [sequence(name, 60, seed) for seed, name in enumerate(names)]

    async def one(client: httpx.AsyncClient, n: int) -> list[list[float]]:
        y: list[list[float]] = []
        while len(y) < 60:
            step = len(y)
            body = {
                "session_id": f"interleaved-{n}",
                "x": inputs[n][step : step + rng.choice([1, 1, 2, 5, 17])].tolist(),
                "step": step,
                "model": names[n],
            }
            reply = await client.post("/predict", json=body)
            if rng.random() < 0.2:
                assert (await client.post("/predict", json=body)).content == reply.content
            assert reply.status_code == 200, reply.text
            y += reply.json()["y"]
        return y

    async def all_of_them() -> list[list[list[float]]]:
        limits = httpx.Limits(max_connections=16)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(one(client, n) for n in range(50)))

    for name, x, y in zip(names, inputs, asyncio.run(all_of_them()), strict=True):
        assert y == whole(models[name], x)


def test_one_session_hammered_at_once_advances_once_per_step(
    server: Server, models: dict[str, Model]
) -> None:
    """Many clients send the same numbered steps: each is run once, and answered to all the same."""
    x = sequence("sine-cell", 30, 11)

    async def scenario() -> list[list[float]]:
        y: list[list[float]] = []
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            for step in range(30):
                body = {"session_id": "hammered", "x": x[step : step + 1].tolist(), "step": step}
                body["model"] = "sine-cell"
                replies = await asyncio.gather(
                    *(client.post("/predict", json=body) for _ in range(8))
                )
                assert {reply.status_code for reply in replies} == {200}
                assert len({reply.content for reply in replies}) == 1
                y += replies[0].json()["y"]
        return y

    assert asyncio.run(scenario()) == whole(models["sine-cell"], x)


# BentoML's own face -----------------------------------------------------------------------------


BENTOML_CLIENT = """
import bentoml, json, sys
url, x = sys.argv[1], json.loads(sys.argv[2])
with bentoml.SyncHTTPClient(url) as client:
    first = client.predict(session_id="bento", x=x[:3], model="sine-cell")
    second = client.predict(session_id="bento", x=x[3:], step=3)
print(json.dumps([first, second]))
"""


def test_bentomls_client_calls_predict(server: Server, models: dict[str, Model]) -> None:
    """By keyword, as its documentation shows; in a process of its own, for its own warnings."""
    x = sequence("sine-cell", 4, 3)
    command = [sys.executable, "-c", BENTOML_CLIENT, server.url, json.dumps(x.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert (first["step"], second["step"]) == (3, 4)
    assert first["y"] + second["y"] == whole(models["sine-cell"], x)


def test_the_openapi_page_shows_our_routes_with_examples(client: httpx.Client) -> None:
    """BentoML serves the page at / and the document at /docs.json."""
    assert "swagger" in client.get("/").text.lower()
    paths = client.get("/docs.json").json()["paths"]
    for path in (
        "/predict",
        "/stream",
        "/forecast",
        "/models",
        "/readyz",
        "/sessions/{session_id}",
    ):
        assert path in paths
    predict_route = paths["/predict"]["post"]
    examples = predict_route["requestBody"]["content"]["application/json"]["examples"]
    assert examples["numbers"]["value"] == {"session_id": "pump-7", "x": [[0.1], [0.2]], "step": 0}
    assert set(predict_route["responses"]) >= {"200", "400", "404", "409", "410", "413", "429"}
    assert "application/x-ndjson" in paths["/stream"]["post"]["requestBody"]["content"]
    replies = paths["/forecast"]["post"]["responses"]["200"]["content"]
    assert set(replies) == {"application/x-ndjson", "text/event-stream"}


def test_an_array_is_answered_by_an_array(client: httpx.Client, models: dict[str, Model]) -> None:
    """Over the wire, through the whole server: many sessions, a refusal among them."""
    xs = [sequence("sine-cell", 6, seed) for seed in range(20)]
    bodies = [
        {"session_id": f"array-{n}", "x": x[at : at + 3].tolist(), "model": "sine-cell"}
        for at in (0, 3)
        for n, x in enumerate(xs)
    ]
    bodies.insert(20, {"session_id": "array-0", "x": [[0.5]], "model": "sine-cell", "step": 9})
    reply = client.post("/predict", json=bodies)
    assert reply.status_code == 200
    replies = reply.json()
    refused = replies.pop(20)
    assert (refused["status"], refused["session_id"], refused["step"]) == (409, "array-0", 9)
    for n, x in enumerate(xs):
        ys = [one["y"] for one in (replies[n], replies[20 + n])]
        assert ys[0] + ys[1] == whole(models["sine-cell"], x)
