"""Three services on one Redis behind a plain round-robin: every session is one sequence."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.model import Model
from tests.e2e.conftest import Server, Start
from tests.e2e.round_robin import RoundRobin
from tests.service.redis_servers import RedisServer, a_cluster, one_server

pytestmark = [pytest.mark.needs("redis-server"), pytest.mark.slow]

SERVICES, SESSIONS, CLIENTS_A_SESSION, STEPS = 3, 3, 3, 100
TIMEOUT_S = 120


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """What it has answered survives its own kill -9."""
    with one_server(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


def start_services(start: Start, url: str, **settings: str) -> list[Server]:
    services = [
        start(CAROUSEL_STORE="redis", CAROUSEL_REDIS_URL=url, **settings) for _ in range(SERVICES)
    ]
    for service in services:
        service.wait_until_it_listens()
    return services


@dataclass
class Hammering:
    """What the clients of one session send and were told; several send the very same steps."""

    session_id: str
    x: np.ndarray  # (STEPS, 1)
    told: list[tuple[int, float]] = field(default_factory=list)  # step, y
    failed: list[str] = field(default_factory=list)

    def run(self, url: str) -> None:
        """One client: each request on a new connection, sent again until it is answered."""
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=url, timeout=30, limits=limits) as client:
            self._go_through(client)

    def _go_through(self, client: httpx.Client) -> None:
        step, deadline = 0, time.monotonic() + TIMEOUT_S
        while step < len(self.x) and time.monotonic() < deadline:
            body = {
                "session_id": self.session_id,
                "x": [self.x[step].tolist()],
                "step": step,
                "model": "sine-cell",
            }
            try:
                reply = client.post("/predict", json=body)
            except httpx.TransportError:
                continue
            if reply.status_code == 200:
                answer = reply.json()
                self.told.append((step, answer["y"][0][0]))
                step = answer["step"]
            elif reply.status_code == 409 and (at := reply.json()["error"]["expected"]) > step:
                step = at  # another client was faster; a step back would be one that was lost
            elif reply.status_code == 503:
                time.sleep(0.05)
            else:
                self.failed.append(reply.text)
                return
        if step < len(self.x):
            self.failed.append(f"stands at step {step} after {TIMEOUT_S} s")


@dataclass
class Counting:
    """A session whose clients all send the same row and no `step`: each reply is one advance."""

    session_id: str
    told: list[tuple[int, float]] = field(default_factory=list)  # the session's step, y
    unknown: int = 0  # requests that may have been done, or not
    failed: list[str] = field(default_factory=list)

    def run(self, url: str) -> None:
        body = {"session_id": self.session_id, "x": [[0.5]], "model": "sine-cell"}
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=url, timeout=30, limits=limits) as client:
            for _ in range(STEPS):
                try:
                    reply = client.post("/predict", json=body)
                except httpx.TransportError:
                    self.unknown += 1
                    continue
                if reply.status_code == 200:
                    answer = reply.json()
                    self.told.append((answer["step"], answer["y"][0][0]))
                elif reply.status_code == 503:
                    self.unknown += 1
                    time.sleep(0.05)
                else:
                    self.failed.append(reply.text)


@contextmanager
def hammered(url: str, model: Model) -> Iterator[None]:
    """While the body runs; after it, every session is what a plain loop makes of its steps."""
    generator = np.random.default_rng(7)
    sessions = [
        Hammering(f"pump-{number}", generator.standard_normal((STEPS, 1)).astype(np.float32))
        for number in range(SESSIONS)
    ]
    counting = Counting("counter")
    runs = [*(session.run for session in sessions), counting.run]
    threads = [
        threading.Thread(target=run, args=(url,)) for run in runs for _ in range(CLIENTS_A_SESSION)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    for session in sessions:
        check(session, model, url)
    check_count(counting, model, url)


def stands(session_id: str, url: str) -> int:
    """Asked again if the server that took the connection stopped before it answered."""
    while True:
        with suppress(httpx.TransportError):
            return int(httpx.get(f"{url}/sessions/{session_id}").json()["step"])


def check(session: Hammering, model: Model, url: str) -> None:
    """Every client was told of each step what the loop gives."""
    assert session.failed == []
    (y,), _, _ = model.run([model.encode(session.x)], [model.initial_state])
    assert {step for step, _ in session.told} == set(range(STEPS))
    for step, told in session.told:
        assert np.float32(told) == y[step, 0]
    assert stands(session.session_id, url) == STEPS


def check_count(counting: Counting, model: Model, url: str) -> None:
    """No two replies for one advance, none for none."""
    assert counting.failed == []
    x = np.full((CLIENTS_A_SESSION * STEPS, 1), 0.5, np.float32)
    (y,), _, _ = model.run([model.encode(x)], [model.initial_state])
    steps = [step for step, _ in counting.told]
    assert len(set(steps)) == len(steps)
    for step, told in counting.told:
        assert np.float32(told) == y[step - 1, 0]
    assert 0 <= stands(counting.session_id, url) - len(steps) <= counting.unknown


def test_clients_through_all_servers_see_one_sequence(
    start: Start, redis: RedisServer, models: dict[str, Model]
) -> None:
    """With Redis killed and restarted, and one service terminated, while they hammer."""
    services = start_services(start, redis.url)
    with RoundRobin([service.port for service in services]) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        with hammered(url, models["sine-cell"]):
            time.sleep(1)
            redis.kill()
            time.sleep(0.3)
            assert httpx.get(f"{url}/readyz").status_code == 503
            redis.start()
            time.sleep(1)
            services[0].terminate()
    assert min(proxy.taken.values()) > STEPS / 10
    for service in services[1:]:
        log = service.text()
        assert "requests get 503 until it is there" in log
        assert " is back after " in log
        assert "Traceback" not in log


def test_a_cluster_serves_as_one_redis_does(
    start: Start, tmp_path: Path, models: dict[str, Model]
) -> None:
    """Sessions lie on all of its nodes; no service knows which."""
    with a_cluster(tmp_path / "cluster") as nodes:
        services = start_services(start, nodes[0].url.replace("redis:", "redis+cluster:"))
        with RoundRobin([service.port for service in services]) as proxy:
            url = f"http://127.0.0.1:{proxy.port}"
            with hammered(url, models["sine-cell"]):
                pass
        assert sum(int(node.command("DBSIZE")) > 0 for node in nodes) > 1


def test_a_service_without_its_redis_is_alive_and_not_ready(
    start: Start, redis: RedisServer
) -> None:
    """No crash, no restart: 503 with Retry-After until Redis is there, and then it serves."""
    redis.stop(signal.SIGTERM)
    service = start(CAROUSEL_STORE="redis", CAROUSEL_REDIS_URL=redis.url)
    service.wait_until_it_listens()
    step = {"session_id": "s", "x": [[0.5]], "step": 0, "model": "sine-cell"}
    with service.client() as client:
        assert client.get("/livez").status_code == 200
        for reply in (client.get("/readyz"), client.post("/predict", json=step)):
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
            assert reply.json()["error"]["code"] == "store_unavailable"
        assert f"Redis at {redis.url}: " in service.text()
        redis.start()
        assert client.get("/readyz").status_code == 200
        assert client.post("/predict", json=step).json()["created"] is True
