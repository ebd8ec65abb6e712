"""Who is let in by a real `bentoml serve`, and what it says of the sessions that it holds."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.conftest import ROOT, Server, Start, environment, free_port, start_server
from tests.e2e.test_stream import line

OUTER = """
import bentoml
from service.api import Carousel

@bentoml.service(name="outer")
class Outer:
    carousel = bentoml.depends(Carousel)

    @bentoml.api
    async def advance(self, session_id: str) -> int:
        answer = await self.carousel.to_async.predict(
            session_id=session_id, x=[[0.5]], model="sine-cell"
        )
        return answer.step
"""

CLIENT = """
import bentoml
with bentoml.SyncHTTPClient({url!r}, token={token!r}) as client:
    print(client.predict(session_id="bento", x=[[0.5]])["step"])
"""


def keys(*arguments: str) -> str:
    """What `python -m service.keys` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "service.keys", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def wait_for(what: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def metric(server: Server, name: str) -> float:
    """A sample of /metrics; 0 where there is none."""
    text = httpx.get(server.url + "/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def listening_on(server: Server) -> set[str]:
    """The addresses on which the server's port is open."""
    return {
        connection.laddr.ip
        for process in [server.process, *server.process.children(recursive=True)]
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == server.port
    }


def own_address() -> str:
    """An address of this machine that others could reach."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family.name == "AF_INET" and not address.address.startswith("127."):
                return str(address.address)
    pytest.skip("this machine has no network")


# Without keys -----------------------------------------------------------------------------------


def test_plain_serve_answers_this_machine_only_and_says_so(start: Start) -> None:
    """BentoML alone would listen on every address."""
    server = start(BENTOML_HOST="")
    server.wait_until_it_listens()
    assert listening_on(server) == {"127.0.0.1"}
    assert "there are no API keys: only this machine is answered; set CAROUSEL" in server.text()


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (("--host", "0.0.0.0"), {"BENTOML_HOST": ""}),
        ((), {"BENTOML_HOST": "::"}),
        (
            (),
            {
                "BENTOML_HOST": "",
                "BENTOML_CONFIG_OPTIONS": "services.carousel.http.host=0.0.0.0",
            },
        ),
    ],
)
def test_a_host_that_lets_the_network_in_stops_the_start(
    start: Start, arguments: tuple[str, ...], settings: dict[str, str]
) -> None:
    """By flag, environment or configuration: one line says what to do instead."""
    server = start(*arguments, **settings)
    assert server.process.wait(timeout=60) == 1
    assert "lets the network in, and there are no API keys; set CAROUSEL_API" in server.text()
    assert "Traceback" not in server.text()


def test_a_server_that_anybody_may_ask_listens_everywhere(start: Start) -> None:
    """The operator said so; what stands in front decides."""
    server = start(BENTOML_HOST="", CAROUSEL_ALLOW_ANONYMOUS="true")
    server.wait_until_it_listens()
    assert listening_on(server) == {"0.0.0.0"}
    reply = httpx.post(
        f"http://{own_address()}:{server.port}/predict",
        json=line("s", [[0.5]], model="sine-cell"),
    )
    assert reply.status_code == 200


def test_a_script_that_opens_the_port_does_not_open_the_door(
    artifacts: Path, tmp_path: Path
) -> None:
    """`bentoml.serve(host=...)` tells nobody: requests over the network are refused."""
    port = free_port()
    script = f"import bentoml; bentoml.serve('.', host='0.0.0.0', port={port}, blocking=True)"
    log = tmp_path / "serve.log"
    with log.open("wb") as out:
        process = psutil.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=environment(
                tmp_path / "bentoml", CAROUSEL_ARTIFACTS=str(artifacts), CAROUSEL_GRPC_PORT="0"
            ),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, port, log)
    try:
        server.wait_until_it_listens()
        body = line("s", [[0.5]], model="sine-cell")
        refused = httpx.post(f"http://{own_address()}:{port}/predict", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert httpx.post(server.url + "/predict", json=body).status_code == 200
    finally:
        server.stop()


# With keys --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.toml"


@pytest.fixture(scope="module")
def acme(key_file: Path) -> str:
    return keys("new", "--tenant", "acme", "--file", str(key_file))


@pytest.fixture(scope="module")
def zeta(key_file: Path) -> str:
    return keys("new", "--tenant", "zeta", "--max-sessions", "2", "--file", str(key_file))


@pytest.fixture(scope="module")
def locked(
    artifacts: Path, key_file: Path, acme: str, zeta: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A service with two tenants' keys, its key file named from its working directory."""
    server = start_server(
        tmp_path_factory.mktemp("locked"),
        str(ROOT),
        cwd=key_file.parent,
        CAROUSEL_ARTIFACTS=str(artifacts),
        CAROUSEL_API_KEYS_FILE=key_file.name,
        CAROUSEL_DEFAULT_MODEL="sine-cell",
        BENTOML_HOST="",
    )
    try:
        server.wait_until_it_listens()
        yield server
    finally:
        server.stop()


def test_with_keys_the_network_is_let_in_and_strangers_are_not(locked: Server, acme: str) -> None:
    """Probes, metrics and the documentation need no key."""
    assert listening_on(locked) == {"0.0.0.0"}
    url = f"http://{own_address()}:{locked.port}"
    for headers in ({}, bearer("x" * 52)):
        reply = httpx.post(url + "/predict", json=line("s", [[0.5]]), headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "unauthorized")
        assert reply.headers["www-authenticate"] == 'Bearer realm="carousel"'
    for path in ("/livez", "/healthz", "/readyz", "/metrics", "/docs.json", "/schema.json", "/"):
        assert httpx.get(url + path).status_code == 200, path
    assert httpx.get(url + "/readyz").json() == {"status": "ready"}
    assert len(httpx.get(url + "/readyz", headers=bearer(acme)).json()["models"]) == 3
    assert metric(locked, 'carousel_requests_refused_total{reason="unauthorized"}') >= 2


def test_two_tenants_use_the_same_id_and_never_meet(locked: Server, acme: str, zeta: str) -> None:
    """Each has a session of its own under it; nobody else's answers."""
    with locked.client() as client:
        for step in range(3):
            body = line("pump", [[0.1 * step]], step=step)
            reply = client.post("/predict", json=body, headers=bearer(acme))
            assert reply.json()["step"] == step + 1
        missing = client.get("/sessions/pump", headers=bearer(zeta))
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "session_not_found")
        assert client.delete("/sessions/pump", headers=bearer(zeta)).content == missing.content
        first = client.post("/predict", json=line("pump", [[0.0]]), headers=bearer(zeta))
        assert (first.json()["step"], first.json()["created"]) == (1, True)
        assert client.get("/sessions/pump", headers=bearer(acme)).json()["step"] == 3
        for name in ("two", "three"):
            last = client.post("/predict", json=line(name, [[0.5]]), headers=bearer(zeta))
        assert (last.status_code, last.json()["error"]["limit"]) == (429, "tenant_sessions")
        assert 1 <= int(last.headers["retry-after"]) <= 60


def test_bentomls_own_client_gives_its_token(locked: Server, acme: str) -> None:
    """As `Authorization: Bearer`; without one it is told so."""

    def ask(token: str | None) -> str:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT.format(url=locked.url, token=token)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout.strip() or done.stderr.splitlines()[-1]

    assert ask(acme) == "1"
    assert "unauthorized" in ask(None)


def test_keys_are_rotated_while_it_serves(locked: Server, key_file: Path, acme: str) -> None:
    """A new key counts and a revoked one does not, within seconds; a broken file is ignored."""
    new = keys("new", "--tenant", "acme", "--file", str(key_file))
    with locked.client() as client:

        def status(key: str) -> int:
            body = line("rotated", [[0.5]])
            return client.post("/predict", json=body, headers=bearer(key)).status_code

        wait_for(lambda: status(new) == 200)
        session = client.get("/sessions/rotated", headers=bearer(acme)).json()
        assert session["step"] == 1  # the same tenant, whatever the key
        listed = keys("list", "--file", str(key_file)).splitlines()
        keys("revoke", listed[-1][:12], "--file", str(key_file))
        wait_for(lambda: status(new) == 401)
        good = key_file.read_text()
        key_file.write_text(good + "x = \n")
        wait_for(lambda: status(acme) == 200 and "the old API keys stay in force" in locked.text())
        key_file.write_text(good)


def test_keys_that_cannot_be_read_stop_the_start(start: Start) -> None:
    """With the reason, and no traceback."""
    server = start(CAROUSEL_API_KEYS_FILE="/nowhere/keys.toml")
    assert server.process.wait(timeout=60) == 1
    assert "carousel: the key file /nowhere/keys.toml cannot be read" in server.text()
    server = start(CAROUSEL_API_KEYS="x = ")
    assert server.process.wait(timeout=60) == 1
    assert "carousel: CAROUSEL_API_KEYS is not TOML" in server.text()
    server = start(CAROUSEL_API_KEYS="x", CAROUSEL_ALLOW_ANONYMOUS="true")
    assert server.process.wait(timeout=60) == 1
    assert "contradict each other" in server.text()
    assert "Traceback" not in server.text()


@pytest.mark.parametrize("locked_up", [False, True])
def test_another_bentoml_service_passes_the_same_door(
    start: Start, tmp_path: Path, acme: str, key_file: Path, locked_up: bool
) -> None:
    """One that depends on ours asks it by BentoML's own road: without a key, where one is needed,
    it gets nothing."""
    (tmp_path / "outer.py").write_text(OUTER)
    settings = {"CAROUSEL_API_KEYS_FILE": str(key_file)} if locked_up else {}
    server = start("outer:Outer", cwd=tmp_path, PYTHONPATH=str(ROOT), **settings)
    wait_for(lambda: is_up(server), within_s=60)
    reply = httpx.post(server.url + "/advance", json={"session_id": "s"}, timeout=30)
    if locked_up:
        assert reply.status_code != 200
        assert "this server wants an API key" in reply.text + server.text()
    else:
        assert (reply.status_code, reply.text) == (200, "1")


def is_up(server: Server) -> bool:
    assert server.process.poll() is None, server.text()
    try:
        return httpx.get(server.url + "/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


# What it holds ----------------------------------------------------------------------------------


def test_a_session_that_expired_is_gone_counted_and_logged(start: Start) -> None:
    """410 for its client; a metric and a line for the operator, though nobody asks for it."""
    server = start(CAROUSEL_IDLE_TIMEOUT_S="1")
    server.wait_until_it_listens()
    with server.client() as client:
        for name in ("idle", "other\nline"):
            body = line(name, [[0.5]], model="sine-cell")
            assert client.post("/predict", json=body).status_code == 200
        assert metric(server, "carousel_sessions_live") == 2
        assert metric(server, "carousel_sessions_opened_total") == 2
        wait_for(lambda: metric(server, "carousel_sessions_expired_total") == 2)
        assert metric(server, "carousel_sessions_live") == 0
        gone = client.post("/predict", json=line("idle", [[0.5]], step=1))
        assert (gone.status_code, gone.json()["error"]["code"]) == (410, "session_gone")
        assert metric(server, 'carousel_requests_refused_total{reason="session_gone"}') == 1
    assert re.search(r"idle sessions? expired: .*'idle'", server.text())
    assert r"'other\nline'" in server.text()


def test_a_model_whose_sessions_are_too_large_is_not_served(start: Start) -> None:
    """/readyz says how many bytes they take."""
    server = start(CAROUSEL_MAX_STATE_BYTES="64")
    server.wait_until_it_listens()
    ready = httpx.get(server.url + "/readyz")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "state_too_large")
    assert ready.json()["error"]["expected"] == 64 < ready.json()["error"]["got"]
    assert "set CAROUSEL_MAX_STATE_BYTES=" in ready.json()["error"]["message"]
