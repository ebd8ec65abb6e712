"""Versions that come, go and are promoted under a real server, with curl."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server, Start
from tests.e2e.test_copies import curl
from tests.service.build_artifact import Spec, build_artifact

PATIENCE_S = 20  # a look is due every second; a busy machine takes longer


def predict(server: Server, session_id: str, **more: Any) -> Any:
    body = {"session_id": session_id, "x": [[0.5]], **more}
    status, reply = curl(f"{server.url}/predict", "-d", json.dumps(body))
    assert status == 200, reply
    return reply


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def models(server: Server) -> Any:
    return curl(f"{server.url}/models")[1]


def newest(server: Server) -> str:
    return next(str(m["version"]) for m in models(server)["models"] if m["newest"])


@pytest.mark.needs("curl")
def test_versions_come_and_go_and_are_promoted_without_a_restart(
    start: Start, tmp_path: Path
) -> None:
    """One life of a server: a new version, a broken one, an incompatible one, a roll-back."""
    root = tmp_path / "live"
    old = build_artifact(root, Spec("m", seed=1)).name
    server = start(CAROUSEL_ARTIFACTS=str(root))
    server.wait_until_it_listens()
    predict(server, "live", step=0)

    new = build_artifact(root, Spec("m", seed=2)).name
    until(lambda: newest(server) == new)
    assert predict(server, "live", step=1)["version"] == old
    assert predict(server, "fresh", step=0)["version"] == new

    bad = build_artifact(root, Spec("m", seed=3, golden_error=0.1)).name
    until(lambda: bool(models(server)["broken"]))
    (broken,) = models(server)["broken"]
    assert (broken["name"], broken["version"]) == ("m", bad)
    assert broken["error"]["code"] == "self_test_failed"
    assert curl(f"{server.url}/readyz")[0] == 200
    assert predict(server, "after", step=0)["version"] == new
    assert f"m:{bad} is not served" in server.text()

    status, reply = curl("-X", "POST", f"{server.url}/models/m/promote")
    assert (status, reply) == (200, {"model": "m", "from": [old], "to": new, "refused": []})
    again = predict(server, "live", step=1)  # the last request of the old version
    assert (again["version"], again["step"]) == (old, 2)
    moved = predict(server, "live", step=2)
    assert (moved["version"], moved["step"], moved["created"]) == (new, 3, False)
    assert models(server)["promoted"] == {"m": {old: new}}

    wide = build_artifact(root, Spec("m", seed=4, hidden_size=9)).name
    until(lambda: newest(server) == wide)
    at = f"{server.url}/models/m/promote"
    status, reply = curl(at, "-d", json.dumps({"from": new}))
    assert (status, reply["error"]["code"]) == (409, "incompatible")
    assert [port["port"] for port in reply["error"]["ports"]] == ["c", "h"]
    assert predict(server, "live", step=3)["version"] == new

    shutil.rmtree(root / "m" / wide)
    shutil.rmtree(root / "m" / bad)
    until(lambda: newest(server) == new and not models(server)["broken"])
    status, reply = curl(at, "-d", json.dumps({"from": new, "to": old}))
    assert (status, reply["to"]) == (200, old)
    assert predict(server, "live", step=4)["version"] == old
    for body, expected, code in [
        ('{"to": "0123"}', 404, "unknown_model"),
        (json.dumps({"from": new, "to": new}), 400, "invalid_request"),
        ('{"form": ""}', 400, "invalid_request"),
    ]:
        status, reply = curl(at, "-d", body)
        assert (status, reply["error"]["code"]) == (expected, code), body
    assert curl("-X", "POST", f"{server.url}/models/nobody/promote")[0] == 404
    assert curl(at)[0] == 405
    assert "Traceback" not in server.text()


@pytest.mark.needs("curl")
def test_all_workers_come_to_serve_a_new_version_and_to_move_sessions(
    start: Start, tmp_path: Path
) -> None:
    """Whichever worker is asked; a session that moved stays moved, and no step is refused."""
    root = tmp_path / "shared"
    old = build_artifact(root, Spec("m", seed=1)).name
    server = start(CAROUSEL_ARTIFACTS=str(root), CAROUSEL_WORKERS="2")
    server.wait_until_it_listens()
    sessions = [f"s-{n}" for n in range(6)]
    for session in sessions:
        assert predict(server, session, step=0)["version"] == old
    new = build_artifact(root, Spec("m", seed=2)).name
    until(lambda: {newest(server) for _ in range(12)} == {new})
    assert {predict(server, session, step=1)["version"] for session in sessions} == {old}

    assert curl("-X", "POST", f"{server.url}/models/m/promote")[0] == 200
    versions: list[list[str]] = [[] for _ in sessions]
    step = 2

    def have_all_moved() -> bool:
        nonlocal step
        for session, seen in zip(sessions, versions, strict=True):
            seen.append(predict(server, session, step=step)["version"])
        step += 1
        return all(seen[-1] == new for seen in versions)

    until(have_all_moved)
    for _ in range(3):
        assert have_all_moved()
    for seen in versions:
        assert seen == sorted(seen, key=[old, new].index)
