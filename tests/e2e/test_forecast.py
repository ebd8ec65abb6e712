"""POST /forecast of a real `bentoml serve`, as NDJSON and as server-sent events."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from httpx_sse import connect_sse

from tests.e2e.conftest import SERIES, SINE, Server, serving
from tests.service.build_artifact import build_artifact
from tests.service.test_forecast import ESCAPING, LOOP, NOISY
from tests.service.test_text import DREAMER, JUDGE

LONG = 10_000_000  # steps: more than are forecast in the time of any test


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Models that can forecast, and two that cannot."""
    root: Path = tmp_path_factory.mktemp("forecasts")
    for spec in (SINE, SERIES, LOOP, NOISY, ESCAPING, DREAMER, JUDGE):
        build_artifact(root, spec)
    with serving(
        tmp_path_factory.mktemp("server"),
        CAROUSEL_ARTIFACTS=str(root),
        CAROUSEL_MAX_FORECAST_STEPS=str(LONG),
    ) as server:
        yield server


@pytest.fixture
def http(forecaster: Server) -> Iterator[httpx.Client]:
    with forecaster.client() as client:
        yield client


def begin(http: httpx.Client, session_id: str, model: str, x: object) -> Any:
    body = {"session_id": session_id, "model": model, "x": x}
    return http.post("/predict", json=body).raise_for_status().json()


def lines_of(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def forecast(http: httpx.Client, session_id: str | None, horizon: int, **more: Any) -> list[Any]:
    """The lines between `start` and `done`."""
    body = {"session_id": session_id, "horizon": horizon, **more}
    reply = http.post("/forecast", json=body)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/x-ndjson")
    start, *steps, done = lines_of(reply.text)
    assert (start["horizon"], len(steps)) == (horizon, horizon)
    assert done == {"done": True, "step": steps[-1]["step"] + 1}
    return steps


def test_a_forecast_is_what_feeding_the_replies_back_gives(http: httpx.Client) -> None:
    """Digit for digit, and the session stands where it stood."""
    x = np.random.default_rng(0).normal(20, 3, (30, 2)).tolist()
    reply = begin(http, "s", "loop", x)
    steps = forecast(http, "s", 60, step=30)
    assert http.get("/sessions/s").json()["step"] == 30
    fed = begin(http, "fed", "loop", x)
    assert fed["y"] == reply["y"]
    for line in steps:
        assert line == {"step": fed["step"], "y": fed["y"][-1]}
        fed = begin(http, "fed", "loop", [line["y"]])
    assert forecast(http, None, 60, model="loop", x=x) == steps


def test_text_is_generated_and_repeats(http: httpx.Client) -> None:
    """One sample as the session would go on; of many each its own."""
    begin(http, "t", "dreamer", "a bad cab")
    alone = forecast(http, "t", 40, want=["text"])
    assert all(line.keys() == {"step", "text"} for line in alone)
    many = forecast(http, "t", 40, want=["text"], samples=50)
    texts = ["".join(line["text"][k] for line in many) for k in range(50)]
    assert texts[0] == "".join(line["text"] for line in alone)
    assert len(set(texts)) == 50
    assert forecast(http, "t", 40, want=["text"], samples=50) == many
    other = forecast(http, "t", 40, want=["text"], samples=50, seed=9)
    assert not set(texts) & {"".join(line["text"][k] for line in other) for k in range(50)}


def test_samples_of_numbers_spread(http: httpx.Client) -> None:
    """Each line has a row for each; /models says who can forecast at all."""
    begin(http, "n", "noisy", [[20.0, 20.0]] * 5)
    steps = forecast(http, "n", 10, samples=100, seed=1)
    y = np.array([line["y"] for line in steps])
    assert y.shape == (10, 100, 2)
    assert (y.std(axis=1) > 0.1).all()
    models = {m["name"]: m["forecast"] for m in http.get("/models").json()["models"]}
    able = {name for name, can in models.items() if can}
    assert able == {"sine-cell", "loop", "noisy", "escaping", "dreamer"}


def test_server_sent_events_as_another_library_reads_them(http: httpx.Client) -> None:
    """The same JSON; each step's event has its index as its id."""
    begin(http, "e", "loop", [[20.0, 20.0]] * 4)
    steps = forecast(http, "e", 20)
    body = {"session_id": "e", "horizon": 20}
    with connect_sse(http, "POST", "/forecast", json=body) as source:
        assert source.response.headers["content-type"] == "text/event-stream"
        events = list(source.iter_sse())
    assert [event.event for event in events] == ["start", *["step"] * 20, "done"]
    start, *found, done = events
    assert start.json()["model"] == "loop" and start.json()["step"] == 4
    assert [event.json() for event in found] == steps
    assert [event.id for event in found] == [str(line["step"]) for line in steps]
    assert done.json() == {"done": True, "step": 24}


@pytest.mark.parametrize(
    ("session", "more", "status", "code"),
    [
        ("r", {"step": 3}, 409, "step_conflict"),
        ("r", {"model": "sine-cell"}, 409, "model_conflict"),
        ("nobody", {}, 404, "session_not_found"),
        ("nobody", {"step": 3}, 410, "session_gone"),
        ("r", {"horizon": LONG + 1}, 413, "too_long"),
        ("r", {"horizon": 2**63 - 1, "samples": 200}, 413, "too_long"),
        ("r", {"samples": 1000}, 413, "too_long"),
        ("r", {"samples": 2}, 400, "cannot_forecast"),
        ("j", {}, 400, "cannot_forecast"),
        ("w", {}, 400, "cannot_forecast"),
        ("r", {"x": [[1.0]]}, 400, "bad_shape"),
        ("r", {"horizon": None}, 400, "invalid_request"),
        (None, {}, 400, "invalid_request"),
    ],
)
def test_what_is_refused_has_its_status_and_moves_nothing(
    http: httpx.Client, session: str | None, more: dict[str, Any], status: int, code: str
) -> None:
    """Whatever the reply was to be."""
    for name, model, width in (("r", "loop", 2), ("j", "judge", 2), ("w", "series-lstm", 8)):
        if http.get(f"/sessions/{name}").status_code == 404:
            begin(http, name, model, [[1.0] * width] * 5)
    body = {"session_id": session, "horizon": 3, **more}
    for accept in ("*/*", "text/event-stream"):
        reply = http.post("/forecast", json=body, headers={"accept": accept})
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert http.get("/sessions/r").json()["step"] == 5


def test_a_result_that_is_not_finite_is_the_last_event(http: httpx.Client) -> None:
    """After the steps before it; the session goes on."""
    begin(http, "x", "escaping", [[0.5]] * 3)
    body = {"session_id": "x", "horizon": 500}
    with connect_sse(http, "POST", "/forecast", json=body) as source:
        _, *steps, last = source.iter_sse()
    assert 0 < len(steps) < 100 and {event.event for event in steps} == {"step"}
    error = last.json()["error"]
    assert (last.event, error["code"], error["at_step"]) == (
        "error",
        "result_not_finite",
        3 + len(steps),
    )
    lines = lines_of(http.post("/forecast", json=body).text)
    assert lines[-1]["error"] == error and len(lines) == len(steps) + 2
    assert http.get("/sessions/x").json()["step"] == 3


@pytest.mark.needs("curl")
@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
def test_curl_shows_lines_as_they_come_and_a_hang_up_stops_the_forecast(
    forecaster: Server, http: httpx.Client, accept: str
) -> None:
    """The first lines while the rest would take many minutes; then the server is idle."""
    begin(http, "c", "loop", [[20.0, 20.0]] * 4)
    body = json.dumps({"session_id": "c", "horizon": LONG})
    command = ["curl", "-sS", "-N", "--max-time", "30", "-H", f"Accept: {accept}"]
    begun = time.monotonic()
    with subprocess.Popen(
        [*command, forecaster.url + "/forecast", "-d", body], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(20)]
        assert time.monotonic() - begun < 10
        process.kill()
    assert b"loop" in seen[0] + seen[1]
    deadline = time.monotonic() + 20
    while _cpu_seconds(forecaster, 0.5) > 0.2:
        assert time.monotonic() < deadline, "the forecast goes on"


def _cpu_seconds(server: Server, during_s: float) -> float:
    """What the server's processes use in that time."""
    family = [server.process, *server.process.children(recursive=True)]
    before = sum(sum(process.cpu_times()[:2]) for process in family)
    time.sleep(during_s)
    return sum(sum(process.cpu_times()[:2]) for process in family) - before


def test_requests_are_answered_beside_long_forecasts(http: httpx.Client) -> None:
    """Four of them run all the while; no request waits for their end."""
    begin(http, "l", "loop", [[20.0, 20.0]] * 4)
    enough = threading.Event()

    def read() -> int:
        """How many lines came until there were enough answers."""
        count, body = 0, {"session_id": "l", "horizon": LONG}
        with httpx.stream("POST", f"{http.base_url}/forecast", json=body, timeout=30) as reply:
            for _ in reply.iter_lines():
                count += 1
                if enough.is_set():
                    break
        return count

    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(read) for _ in range(4)]
        times = []
        for n in range(100):
            begun = time.monotonic()
            assert begin(http, "quick", "loop", [[20.0, 20.0]])["step"] == n + 1
            times.append(time.monotonic() - begun)
        enough.set()
        assert all(stream.result() > 10 for stream in streams)
    assert float(np.median(times)) < 0.25  # they would take many minutes


def test_a_server_that_is_stopped_ends_its_forecasts(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SIGTERM in the middle: every line comes, then the server ends."""
    root = tmp_path_factory.mktemp("one")
    build_artifact(root, LOOP)
    with serving(tmp_path, CAROUSEL_ARTIFACTS=str(root)) as server:
        with server.client() as client:
            begin(client, "s", "loop", [[20.0, 20.0]])
            body = {"session_id": "s", "horizon": 5_000}
            with client.stream("POST", "/forecast", json=body) as reply:
                lines = reply.iter_lines()
                head = [json.loads(next(lines)) for _ in range(10)]
                server.terminate()
                rest = [json.loads(line) for line in lines]
        assert len(head) + len(rest) == 5_002
        assert rest[-1] == {"done": True, "step": 5_001}
        server.process.wait(timeout=30)
