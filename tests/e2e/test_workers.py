"""Two workers on the disk store: one consistent sequence for each session, whoever answers."""

import http.client
import os
import random
import signal
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from service.model import Model
from tests.e2e.conftest import Server, Start
from tests.e2e.test_http import whole
from tests.e2e.test_stream import line

SESSIONS, STEPS, CLIENTS = 6, 40, 8


def workers_of(server: Server) -> set[int]:
    """The processes that answer, once there are two: each holds some of many connections."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with ExitStack() as stack:
            ports = set()
            for _ in range(32):
                connection = stack.enter_context(
                    closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30))
                )
                connection.request("GET", "/readyz")
                assert connection.getresponse().read()
                ports.add(connection.sock.getsockname()[1])
            found = {
                process.pid
                for process in server.process.children(recursive=True)
                for held in process.net_connections("tcp")
                if held.raddr and held.raddr.port in ports
            }
        if len(found) == 2:
            return found
        time.sleep(0.2)
    raise AssertionError(f"connections went to {found} only")


def test_sessions_that_two_workers_share_are_one_sequence_each(
    start: Start, models: dict[str, Model], tmp_path: Path
) -> None:
    """Clients race on them with retries, a worker is killed, the service is; all is one loop."""
    rng = np.random.default_rng(5)
    x = {f"s-{n}": rng.normal(size=(STEPS, 1)).astype(np.float32) for n in range(SESSIONS)}
    expected = {name: whole(models["sine-cell"], rows) for name, rows in x.items()}
    settings = {"CAROUSEL_WORKERS": "2", "CAROUSEL_STORE_PATH": str(tmp_path / "sessions")}
    server = start(**settings)
    server.wait_until_it_listens()
    wrong: list[object] = []

    def race(seed: int, until: int) -> None:
        """Send each session's steps up to `until`, from wherever it stands."""
        order = random.Random(seed)
        at = dict.fromkeys(x, 0)
        while left := [name for name in x if at[name] < until]:
            name = order.choice(left)
            step = at[name]
            body = line(name, x[name][step : step + 1].tolist(), step=step)
            try:
                with httpx.Client(base_url=server.url, timeout=30, verify=False) as client:
                    reply = client.post("/predict", json=body)
                with httpx.Client(base_url=server.url, timeout=30, verify=False) as client:
                    again = client.post("/predict", json=body)
            except httpx.TransportError:
                continue  # its worker was killed
            for one in (reply, again):
                if one.status_code == 409:
                    at[name] = max(at[name], one.json()["error"]["expected"])
                elif one.status_code == 200 and one.json()["y"] == expected[name][step : step + 1]:
                    at[name] = max(at[name], step + 1)
                else:
                    wrong.append((name, step, one.text))
                    return

    def race_all(until: int) -> list[threading.Thread]:
        threads = [threading.Thread(target=race, args=(n, until)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        return threads

    threads = race_all(STEPS // 2)
    victim = min(workers_of(server))
    os.kill(victim, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert wrong == []
    family = [server.process, *server.process.children(recursive=True)]
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=10)
    server = start(**settings)
    server.wait_until_it_listens()
    with server.client() as client:
        stands = {name: client.get(f"/sessions/{name}").json()["step"] for name in x}
    assert stands == dict.fromkeys(x, STEPS // 2)
    workers_of(server)
    for thread in race_all(STEPS):
        thread.join()
    assert wrong == []
    assert "Traceback" not in server.text()


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a child of its parent's death"
)
def test_workers_end_with_the_process_that_started_them(start: Start, tmp_path: Path) -> None:
    """It is killed alone, -9: no worker holds the port, and the service is started there again."""
    settings = {"CAROUSEL_WORKERS": "2", "CAROUSEL_STORE_PATH": str(tmp_path / "sessions")}
    server = start(**settings)
    server.wait_until_it_listens()
    workers_of(server)
    with server.client() as client:
        assert client.post("/predict", json=line("s", [[0.5]], step=0)).json()["created"]
        workers = server.process.children(recursive=True)
        server.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    again = start(port=server.port, **settings)
    again.wait_until_it_listens()
    with again.client() as client:
        reply = client.post("/predict", json=line("s", [[0.5]], step=1))
        assert (reply.status_code, reply.json()["step"]) == (200, 2)
