"""Text, labels and alarms of a real `bentoml serve`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Server, serving
from tests.service.build_artifact import build_artifact
from tests.service.test_text import DREAMER, GUARD, JUDGE


@pytest.fixture(scope="module")
def text_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that draws characters, one that names classes, one that raises alarms."""
    root: Path = tmp_path_factory.mktemp("pipelines")
    for spec in (DREAMER, JUDGE, GUARD):
        build_artifact(root, spec)
    with serving(tmp_path_factory.mktemp("server"), CAROUSEL_ARTIFACTS=str(root)) as server:
        yield server


@pytest.fixture
def text_client(text_server: Server) -> Iterator[httpx.Client]:
    with text_server.client() as client:
        yield client


def test_text_over_http(text_client: httpx.Client) -> None:
    """A retry gets the same bytes, and a refused token leaves the session where it was."""
    body: dict[str, Any] = {"session_id": "s", "model": "dreamer", "x": "a bad cab", "step": 0}
    first = text_client.post("/predict", json=body)
    assert first.status_code == 200
    assert len(first.json()["text"]) == 9
    assert text_client.post("/predict", json=body).content == first.content
    refused = text_client.post("/predict", json={**body, "step": 9, "choose": {"method": "best"}})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_request"
    assert text_client.get("/sessions/s").json()["step"] == 9


def test_text_over_a_stream(text_client: httpx.Client) -> None:
    """The lines' texts are what one request for all of them holds; a bad line is told apart."""
    text = "a bad cab he fed"
    lines: list[dict[str, Any]] = [
        {"session_id": "t", "model": "dreamer", "x": c, "want": ["text"]} for c in text
    ]
    lines.insert(7, {"session_id": "t", "x": 5})
    reply = text_client.post("/stream", content="\n".join(map(json.dumps, lines)))
    answers = [json.loads(line) for line in reply.text.splitlines()]
    streamed = "".join(a["text"] for a in answers if "text" in a)
    (error,) = [a for a in answers if "error" in a]
    assert (error["line"], error["error"]["code"]) == (8, "bad_shape")
    assert text_client.delete("/sessions/t").status_code == 200
    whole = text_client.post("/predict", json={**lines[0], "x": text}).json()
    assert (whole["text"], whole.get("y")) == (streamed, None)


def test_labels_and_alarms_over_http(text_client: httpx.Client) -> None:
    """Beside y, one a step."""
    x = [[0.5, -2.0], [3.0, 1.0]]
    judged = text_client.post("/predict", json={"session_id": "j", "model": "judge", "x": x}).json()
    assert set(judged["labels"]) <= {"calm", "loud", "off"}
    assert [sum(p) for p in judged["probabilities"]] == pytest.approx([1, 1])
    body = {"session_id": "g", "model": "guard", "x": x}
    guarded = text_client.post("/predict", json=body).json()
    threshold = GUARD.scaling.alarm.threshold if GUARD.scaling.alarm else 0.0
    assert guarded["alarm"] == [row[0] > threshold for row in guarded["y"]]


def test_the_page_describes_every_field(text_client: httpx.Client) -> None:
    """What a reply may hold, and what a request may ask, of one session."""
    operation = text_client.get("/docs.json").json()["paths"]["/predict"]["post"]
    asked = operation["requestBody"]["content"]["application/json"]["schema"]["oneOf"][0]
    assert {"want", "choose"} <= set(asked["properties"])
    answered = operation["responses"]["200"]["content"]["application/json"]["schema"]["oneOf"][0]
    assert {"text", "tokens", "labels", "probabilities", "alarm"} <= set(answered["properties"])
    assert "`unknown_token`" in operation["responses"]["400"]["description"]
