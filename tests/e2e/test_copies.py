"""Forks and snapshots over a real server, with curl."""

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from service.model import Model
from tests.e2e.conftest import Server, Start
from tests.e2e.test_stream import line

KEYS = {"CAROUSEL_SNAPSHOT_KEY": "a-key-of-this-test-that-is-long-enough"}
X = np.random.default_rng(4).normal(size=(9, 1)).round(3).tolist()


def curl(*arguments: str) -> tuple[int, Any]:
    """The status and the body of one call."""
    command = ["curl", "-sS", "-w", "\n%{http_code}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body) if body else None


def advance(server: Server, session_id: str, x: list[list[float]], step: int) -> Any:
    body = json.dumps(line(session_id, x, model="sine-cell", step=step))
    status, reply = curl(f"{server.url}/predict", "-d", body)
    assert status == 200, reply
    return reply


@pytest.mark.needs("curl")
def test_a_fork_over_http(server: Server, models: dict[str, Model]) -> None:
    """To an id of the client's, and to one that the server makes; each refusal says why."""
    advance(server, "source", X[:3], 0)
    at = f"{server.url}/sessions/source/fork"
    status, reply = curl(at, "-d", '{"session_id": "a/fork", "step": 3}')
    assert status == 200
    assert reply == {
        "session_id": "a/fork",
        "model": "sine-cell",
        "version": models["sine-cell"].version,
        "step": 3,
        "forked_from": "source",
    }
    status, made = curl("-X", "POST", at)
    assert (status, made["step"]) == (200, 3)
    ys = [advance(server, name, X[3:], 3)["y"] for name in ("source", "a/fork", made["session_id"])]
    assert ys[0] == ys[1] == ys[2]
    assert curl(f"{server.url}/sessions/a%2Ffork")[1]["step"] == 9
    for body, expected, code in [
        ('{"session_id": "a/fork"}', 409, "session_exists"),
        ('{"step": 8}', 409, "step_conflict"),
        ('{"steps": 9}', 400, "invalid_request"),
        ('{"session_id": ""}', 400, "invalid_request"),
        ('{"step": ', 400, "invalid_json"),
    ]:
        status, reply = curl(at, "-d", body)
        assert (status, reply["error"]["code"]) == (expected, code), body
    status, reply = curl("-X", "POST", f"{server.url}/sessions/nobody/fork")
    assert (status, reply["error"]["code"]) == (404, "session_not_found")
    assert curl(at)[0] == 405


@pytest.mark.needs("curl")
def test_a_snapshot_survives_its_server(
    start: Start, models: dict[str, Model], tmp_path: Path
) -> None:
    """Down from one server, up to the next, which has the same key."""
    file = tmp_path / "pump.safetensors"
    first = start(**KEYS)
    first.wait_until_it_listens()
    advance(first, "pump/7", X[:3], 0)
    heard = advance(first, "pump/7", X[3:5], 3)
    at = "/sessions/pump%2F7/snapshot"
    subprocess.run(["curl", "-sSf", "-o", file, first.url + at], check=True)
    first.stop()
    state = load_file(file)
    assert {"h", "c"} < set(state)

    server = start(**KEYS)
    server.wait_until_it_listens()
    status, reply = curl("-T", str(file), server.url + at)
    assert (status, reply["step"], reply["replaced"]) == (200, 5, False)
    assert advance(server, "pump/7", X[3:5], 3) == heard
    rest = advance(server, "pump/7", X[5:], 5)["y"]
    model = models["sine-cell"]
    (y,), _, _ = model.run([model.encode(np.array(X))], [model.initial_state])
    assert np.array_equal(np.array(rest, np.float32), model.decode(y)[5:])

    status, reply = curl("-T", str(file), server.url + at)
    assert (status, reply["error"]["code"]) == (409, "session_exists")
    status, reply = curl("-T", str(file), server.url + at + "?replace=true")
    assert (status, reply["step"], reply["replaced"]) == (200, 5, True)
    status, reply = curl("-T", str(file), server.url + at + "?replace=1")
    assert (status, reply["error"]["code"]) == (400, "invalid_request")

    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(raw)
    status, reply = curl("-T", str(changed), f"{server.url}/sessions/x/snapshot")
    assert (status, reply["error"]["code"]) == (403, "bad_signature")
    status, reply = curl("-X", "PUT", "-d", "{}", f"{server.url}/sessions/x/snapshot")
    assert (status, reply["error"]["code"]) == (400, "bad_snapshot")
    assert curl(f"{server.url}/sessions/x")[0] == 404
    assert "Traceback" not in server.text()


def test_a_key_of_another_server_opens_nothing(start: Start, server: Server) -> None:
    """Each memory server without a key of its own makes one."""
    advance(server, "mine", X[:3], 0)
    file = httpx.get(f"{server.url}/sessions/mine/snapshot")
    assert file.headers["content-type"] == "application/octet-stream"
    with server.client() as client:
        assert client.put("/sessions/copy/snapshot", content=file.content).status_code == 200
    other = start()
    other.wait_until_it_listens()
    with other.client() as client:
        refused = client.put("/sessions/mine/snapshot", content=file.content)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "bad_signature")


def test_a_short_key_stops_the_start_and_is_not_shown(start: Start) -> None:
    """One line, without the key."""
    server = start(CAROUSEL_SNAPSHOT_KEY="secret-but-short")
    assert server.process.wait(timeout=60) == 1
    assert "CAROUSEL_SNAPSHOT_KEY: a key has 16 bytes, expected 32 or more" in server.text()
    assert "secret-but-short" not in server.text()


def test_the_routes_are_in_the_documentation(server: Server) -> None:
    """With what they refuse."""
    paths = httpx.get(server.url + "/docs.json").json()["paths"]
    assert set(paths["/sessions/{session_id}/snapshot"]) == {"get", "put"}
    assert "409" in paths["/sessions/{session_id}/fork"]["post"]["responses"]
    assert "409" in paths["/models/{name}/promote"]["post"]["responses"]
