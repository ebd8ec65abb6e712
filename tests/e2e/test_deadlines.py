"""Deadlines over a real server and a slow model, with curl: 504 says that it was not done."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server, serving
from tests.e2e.test_copies import curl
from tests.e2e.ws_client import BareClient, ask, connected
from tests.service.build_artifact import Spec, build_artifact

# Random weights of this size are chaotic: what it computes is not what is tested.
SLOW = Spec("slow", hidden_size=768, seed=5, tolerance=1e3)
X = [[0.1]] * 6000  # about a second
pytestmark = pytest.mark.needs("curl")


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model of which a long chunk takes a second; whatever it is asked may take 20 s."""
    root = tmp_path_factory.mktemp("slow")
    build_artifact(root / "artifacts", SLOW)
    settings = {"CAROUSEL_ARTIFACTS": str(root / "artifacts"), "CAROUSEL_REQUEST_TIMEOUT_S": "20"}
    with serving(root, **settings) as server:
        yield server


def body(session_id: str, x: list[list[float]] = X, **also: Any) -> str:
    return json.dumps({"session_id": session_id, "x": x, **also})


def within(timeout_ms: int) -> tuple[str, str]:
    return "-H", f"X-Request-Timeout-Ms: {timeout_ms}"


def stands_at(server: Server, session_id: str) -> int | None:
    status, reply = curl(f"{server.url}/sessions/{session_id}")
    return reply["step"] if status == 200 else None


def send(tmp_path: Path, text: str) -> tuple[str, str]:
    """As an argument it would be too long for a command line."""
    path = tmp_path / "body"
    path.write_text(text)
    return "--data-binary", f"@{path}"


def test_what_takes_too_long_was_not_done(slow_server: Server, tmp_path: Path) -> None:
    """The session stands where it stood, and the same request with more time goes on from there."""
    url = f"{slow_server.url}/predict"
    assert curl(url, "-d", body("s", [[0.5]]))[0] == 200
    long = send(tmp_path, body("s", step=1))
    status, reply = curl(url, *within(30), *long)
    assert (status, reply["error"]["code"]) == (504, "timed_out")
    assert "timeout of 0.03 s; it was not done" in reply["error"]["message"]
    assert stands_at(slow_server, "s") == 1
    status, reply = curl(url, *within(20_000), *long)
    assert (status, reply["step"]) == (200, 6001)


def test_every_way_to_ask_has_the_same_end(slow_server: Server, tmp_path: Path) -> None:
    """In an array, in a stream, and by the parameter of the Open Inference Protocol."""
    status, reply = curl(
        f"{slow_server.url}/predict", *within(30), *send(tmp_path, f"[{body('many')}]")
    )
    assert (status, reply[0]["status"], reply[0]["error"]["code"]) == (200, 504, "timed_out")
    status, reply = curl(
        f"{slow_server.url}/stream", *within(30), *send(tmp_path, body("stream") + "\n")
    )
    assert (status, reply["error"]["code"], reply["line"]) == (200, "timed_out", 1)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(X), 1], "data": [X]}
    parameters = {"sequence_id": "v2", "sequence_start": True, "timeout": 30_000}
    asked = json.dumps({"inputs": [tensor], "parameters": parameters})
    status, reply = curl(f"{slow_server.url}/v2/models/slow/infer", *send(tmp_path, asked))
    assert (status, "it was not done" in reply["error"]) == (504, True)
    assert [stands_at(slow_server, name) for name in ("many", "stream", "v2")] == [None] * 3


def test_the_header_of_an_upgrade_holds_for_each_frame(slow_server: Server) -> None:
    """From when it comes, not from when the connection was opened."""
    asked = [json.loads(body("ws", [[0.5]])), json.loads(body("ws", step=1))]
    with connected(slow_server, additional_headers={"X-Request-Timeout-Ms": "300"}) as ws:
        (first,), (late,) = ask(ws, asked[0]), ask(ws, asked[1])
        assert (first["step"], late["error"]["code"]) == (1, "timed_out")
        assert "timeout of 0.3 s; it was not done" in late["error"]["message"]
        time.sleep(0.3)
        (again,) = ask(ws, json.loads(body("ws", [[0.5]], step=1)))
        assert again["step"] == 2
    assert stands_at(slow_server, "ws") == 2
    with connected(slow_server) as ws:
        (reply,) = ask(ws, json.loads(body("ws", step=2)))
        assert reply["step"] == 2 + len(X)


def test_an_upgrade_with_a_timeout_that_is_none_is_refused(slow_server: Server) -> None:
    """Before there is a connection."""
    with BareClient(slow_server, None, **{"X-Request-Timeout-Ms": "soon"}) as bare:
        assert bare.status == 400


def test_a_timeout_that_is_none_is_refused(slow_server: Server) -> None:
    """As any field that is not what it should be."""
    header = ("-H", "X-Request-Timeout-Ms: soon")
    status, reply = curl(f"{slow_server.url}/predict", *header, "-d", body("bad", [[0.5]]))
    assert (status, reply["error"]["code"]) == (400, "invalid_request")
    assert "`soon`, expected a whole number of milliseconds" in reply["error"]["message"]
