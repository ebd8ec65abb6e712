"""How a service starts, what stops the start, and how it ends."""

import json
import threading
import time
from pathlib import Path

import httpx
import onnxruntime
import pytest

from service.cpu import read_cpu
from tests.e2e.conftest import Start
from tests.e2e.test_stream import Duplex, duplex, line
from tests.service.build_artifact import Spec, build_artifact


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("CAROUSEL_MAX_BACTH", "3", "did you mean CAROUSEL_MAX_BATCH?"),
        ("CAROUSEL_STORE", "etcd", "CAROUSEL_STORE=etcd: Input should be 'memory'"),
        ("CAROUSEL_STORE_PATH", "/proc", "carousel: /proc cannot hold the sessions ("),
        ("CAROUSEL_ARTIFACTS", "/nowhere", "carousel: there is no model to serve: /nowhere holds"),
        ("CAROUSEL_MODELS", "nobody:latest", "CAROUSEL_MODELS names nobody:latest, which is nei"),
        ("CAROUSEL_DEFAULT_MODEL", "nobody", "CAROUSEL_DEFAULT_MODEL=nobody is not served"),
    ],
)
def test_a_setting_that_cannot_be_meant_stops_the_start(
    start: Start, setting: str, value: str, message: str
) -> None:
    """One line, no traceback, and a process that ends."""
    server = start(**{setting: value})
    assert server.process.wait(timeout=60) == 1
    assert message in server.text()
    assert "Traceback" not in server.text()


def test_a_broken_artifact_is_not_ready_and_the_others_serve(start: Start, tmp_path: Path) -> None:
    """/readyz names it; requests for it get the reason, all others their answers."""
    root = tmp_path / "artifacts"
    build_artifact(root, Spec("good", seed=1))
    broken = build_artifact(root, Spec("broken", seed=2))
    off = build_artifact(root, Spec("off", seed=3, golden_error=1e-2))
    model = broken / "onnx-fp32.onnx"
    model.write_bytes(model.read_bytes() + b"x")
    server = start(CAROUSEL_ARTIFACTS=str(root))
    server.wait_until_it_listens()
    with server.client() as client:
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["error"]["artifact"] == str(broken)
        assert "manifest says sha256" in ready.json()["error"]["message"]
        good = client.post("/predict", json=line("s", [[0.5]], model="good"))
        assert good.status_code == 200
        refused = client.post("/predict", json=line("t", [[0.5]], model="broken"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "bad_artifact")
        assert int(refused.headers["retry-after"]) > 0
        failed = client.post("/predict", json=line("t", [[0.5]], model="off"))
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "self_test_failed")
        assert failed.json()["error"]["artifact"] == str(off)
        assert client.post("/predict", json={"session_id": "t", "x": [[1]]}).status_code == 400
        names = [entry["name"] for entry in client.get("/models").json()["broken"]]
        assert sorted(names) == ["broken", "off"]
    log = server.text()
    assert "good:" in log and " onnx-fp32: golden sequences within " in log
    assert f"isolated; onnxruntime {onnxruntime.__version__} on {read_cpu()}" in log
    assert f"broken:{broken.name} is not served: manifest says sha256" in log


def test_the_newest_version_of_a_model_is_served(start: Start, tmp_path: Path) -> None:
    """Unless CAROUSEL_MODELS names the versions; a NAME/ directory means its newest."""
    root = tmp_path / "artifacts"
    old = build_artifact(root, Spec("m", seed=1))
    new = build_artifact(root, Spec("m", seed=2))
    server = start(CAROUSEL_ARTIFACTS=str(root))
    server.wait_until_it_listens()
    assert httpx.get(server.url + "/readyz").json()["models"] == [f"m:{new.name}"]
    server = start(CAROUSEL_MODELS=f"{new},{old}")
    server.wait_until_it_listens()
    assert len(httpx.get(server.url + "/readyz").json()["models"]) == 2
    server = start(CAROUSEL_MODELS=str(root / "m"))
    server.wait_until_it_listens()
    assert httpx.get(server.url + "/readyz").json()["models"] == [f"m:{new.name}"]


def test_full_queues_and_full_servers_say_when_to_come_back(start: Start) -> None:
    """429 with Retry-After; a live session goes on."""
    server = start(CAROUSEL_MAX_SESSIONS="1", CAROUSEL_IDLE_TIMEOUT_S="600")
    server.wait_until_it_listens()
    with server.client() as client:
        assert client.post("/predict", json=line("one", [[0.5]])).status_code == 200
        refused = client.post("/predict", json=line("two", [[0.5]]))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert client.post("/predict", json=line("one", [[0.5]])).json()["step"] == 2
        client.delete("/sessions/one")
        assert client.post("/predict", json=line("two", [[0.5]])).status_code == 200


def test_an_idle_session_expires_and_its_client_is_told(start: Start) -> None:
    """410 for its next step."""
    server = start(CAROUSEL_IDLE_TIMEOUT_S="0.3")
    server.wait_until_it_listens()
    with server.client() as client:
        assert client.post("/predict", json=line("idle", [[0.5]])).json()["step"] == 1
        deadline = time.monotonic() + 10
        while client.get("/sessions/idle").status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        gone = client.post("/predict", json=line("idle", [[0.5]], step=1))
        assert (gone.status_code, gone.json()["error"]["code"]) == (410, "session_gone")
        assert client.post("/predict", json=line("idle", [[0.5]])).json()["created"] is True


def test_a_service_told_to_stop_answers_what_it_accepted(start: Start) -> None:
    """SIGTERM: running requests get their replies, an open stream its last line, and it ends."""
    server = start()
    server.wait_until_it_listens()
    replies: list[httpx.Response] = []

    def long_request() -> None:
        body = json.dumps(line("long", [[0.5]] * 16_000))
        replies.append(httpx.post(server.url + "/predict", content=body, timeout=60))

    with duplex(server) as stream:
        stream.send(line("open", [[0.5]]))
        stream.head()
        assert stream.read()["step"] == 1
        thread = threading.Thread(target=long_request)
        thread.start()
        with server.client() as client:
            while not replies and client.get("/sessions/open").status_code != 200:
                continue
        stream.send(*(line("open", [[0.5]]) for _ in range(20)))
        answered = [stream.read() for _ in range(20)]
        assert [reply["step"] for reply in answered] == list(range(2, 22))
        server.terminate()
        (last,) = stream.rest()
        assert (last["error"]["code"], last["line"]) == ("draining", 22)
        thread.join()
    assert replies[0].status_code in (200, 503)
    server.process.wait(timeout=30)
    assert "Traceback" not in server.text()


def test_the_service_answers_whole_bodies_only(start: Start) -> None:
    """A client that leaves in the middle of its body has sent nothing."""
    server = start()
    server.wait_until_it_listens()
    with server.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n{")
    with server.client() as client:
        assert client.post("/predict", json=line("whole", [[0.5]])).json()["step"] == 1
    assert "Traceback" not in server.text()


def test_a_stream_may_stay_idle_and_other_streams_come_and_go(start: Start) -> None:
    """Nothing of BentoML's puts a clock on it."""
    server = start(BENTOML_CONFIG_OPTIONS="services.carousel.traffic.timeout=1")
    server.wait_until_it_listens()
    with duplex(server) as stream:
        stream.head()
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            with server.connect() as connection:
                other = Duplex(connection)
                other.send(line("other", [[0.5]]))
                other.finish()
                other.head()
                assert len(other.rest()) == 1
                other.close()
        stream.send(line("idle", [[0.5]]))
        assert stream.read()["step"] == 1
