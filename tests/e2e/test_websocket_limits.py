"""/ws where there are keys, few places, short pings, and a host that times requests out."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Opcode

from service.key_ring import digest_of_key
from service.protocols.frames import NO_HANDLE, Binding, Send, decode_replies, encode_requests
from tests.e2e.conftest import ROOT, Server, Start, environment, start_server
from tests.e2e.ws_client import BareClient, ask, body, connected, read, records_in, rest

HOST_TIMEOUT_S = 1
PING_S = 0.3
MAX_BODY_BYTES = 20_000
PLACES = 8  # so two of a tenant, and two of who has shown no key
# The timeout and the concurrency of the app that BentoML builds.
HOST_LIMITS = """
from _bentoml_impl.server.app import ServiceAppFactory
from service.api import Carousel
Carousel.inject_config()
host = ServiceAppFactory(Carousel, is_main=True)
print(host.timeout, host.max_concurrency)
"""
TENANTS = ["host", "acme", "other", "leaver", "page", "crowd", "calm", "long", "silent", "dead"]
TENANTS += ["late", *(f"many-{n}" for n in range(PLACES // 2))]


@dataclass(frozen=True)
class Place:
    """A service, and its file of keys."""

    server: Server
    keys: Path

    def key(self, tenant: str) -> str:
        return f"carousel_{tenant:-<40}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("limits")
    traffic = f"{{timeout: {HOST_TIMEOUT_S}, max_concurrency: 1}}"
    (root / "bentoml.yaml").write_text(f"services: {{carousel: {{traffic: {traffic}}}}}\n")
    with (root / "keys.toml").open("w") as file:
        for tenant in TENANTS:
            digest = digest_of_key(f"carousel_{tenant:-<40}".encode())
            file.write(f'{digest} = {{ tenant = "{tenant}" }}\n')
    return {
        "BENTOML_CONFIG": str(root / "bentoml.yaml"),
        "CAROUSEL_API_KEYS_FILE": str(root / "keys.toml"),
        "CAROUSEL_PING_INTERVAL_S": str(PING_S),
        "CAROUSEL_MAX_CONNECTIONS": str(PLACES),
        "CAROUSEL_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
    }


@pytest.fixture(scope="module")
def place(
    artifacts: Path, settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    options: dict[str, Any] = {**settings, "CAROUSEL_ARTIFACTS": str(artifacts)}
    server = start_server(tmp_path_factory.mktemp("place"), **options)
    try:
        server.wait_until_it_listens()
        yield Place(server, Path(settings["CAROUSEL_API_KEYS_FILE"]))
        assert "Traceback" not in server.text()
    finally:
        server.stop()


def bearer(key: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


def refusal(server: Server, **options: Any) -> tuple[int, dict[str, Any], str | None]:
    """Status, error and Retry-After of a handshake that is refused."""
    with pytest.raises(InvalidStatus) as refused, connected(server, **options):
        pass
    response = refused.value.response
    error = json.loads(response.body or b"")["error"]
    return response.status_code, error, response.headers.get("retry-after")


def stands(server: Server, key: str, session_id: str) -> int:
    headers = {"x-api-key": key}
    reply = httpx.get(f"{server.url}/sessions/{session_id}", headers=headers)
    return int(reply.json()["step"]) if reply.status_code == 200 else 0


# The host -------------------------------------------------------------------------------------


def test_connections_outlive_what_the_host_allows_a_request(
    place: Place, settings: dict[str, str], tmp_path: Path
) -> None:
    """Two at once, idle for longer than its timeout, where it lets one request in at a time."""
    told = subprocess.run(
        [sys.executable, "-c", HOST_LIMITS],
        cwd=ROOT,
        env=environment(tmp_path, **settings),
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"{HOST_TIMEOUT_S} 1\n"
    with ExitStack() as stack:
        both = [stack.enter_context(connected(place.server, **bearer(place.key("host"))))]
        both.append(stack.enter_context(connected(place.server, **bearer(place.key("host")))))
        first = ask(both[0], body("idle", [[0.5]]))
        time.sleep(1.5 * HOST_TIMEOUT_S)
        assert first[0]["step"] == 1
        assert [ask(ws, body("idle", [[0.5]]))[0]["step"] for ws in both] == [2, 3]


# Keys -----------------------------------------------------------------------------------------


def test_a_key_comes_by_header_or_in_the_first_frame(place: Place) -> None:
    """And is that of a tenant, whose sessions alone are there."""
    acme, other = place.key("acme"), place.key("other")
    with connected(place.server, **bearer(acme)) as ws:
        assert ask(ws, body("shared", [[0.5], [0.5]]))[0]["step"] == 2
    with connected(place.server, additional_headers={"X-API-Key": acme}) as ws:
        assert ask(ws, body("shared", [[0.5]]))[0]["step"] == 3
    with connected(place.server) as ws:
        assert ask(ws, {"api_key": acme}) == [{"authenticated": True}]
        assert ask(ws, body("shared", [[0.5]]))[0]["step"] == 4
        assert ask(ws, "x")[0]["frame"] == 2
    with connected(place.server) as ws:
        assert ask(ws, {"api_key": other}) == [{"authenticated": True}]
        ws.send(encode_requests([Send(0, np.ones((1, 1)))], [Binding(0, "shared", "sine-cell")]))
        (reply,) = records_in(ws.recv(timeout=30))
        assert reply.step == 1


def test_an_unknown_key_in_the_handshake_is_refused(place: Place) -> None:
    """By HTTP, in the shape of all errors."""
    status, error, _ = refusal(place.server, **bearer("carousel_" + "x" * 43))
    assert (status, error["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    "first",
    [
        json.dumps({"api_key": "carousel_" + "x" * 43}),
        json.dumps({"api_key": "é"}),
        json.dumps(body("keyless", [[0.5]])),
        json.dumps({"api_key": "x" * 5000}),
        "nonsense",
        b"\xca\x01\x01\x01",
    ],
)
def test_a_first_frame_without_a_key_that_is_known_ends_the_connection(
    place: Place, first: str | bytes
) -> None:
    """An error, then 1008 with its message as the reason."""
    with connected(place.server) as ws:
        ws.send(first)
        (error,), code, reason = rest(ws)
        told = json.loads(error)["error"]
        assert (told["code"], code) == ("unauthorized", 1008)
        assert told["message"].startswith(reason) and reason


def test_a_revoked_key_ends_the_connection_at_its_next_frame(place: Place) -> None:
    """What came before is answered; what comes with it is not run."""
    key, kept = place.key("leaver"), place.keys.read_text()
    with connected(place.server, **bearer(key)) as ws:
        assert ask(ws, body("leaver", [[0.5]]))[0]["step"] == 1
        others = [line for line in kept.splitlines() if "leaver" not in line]
        place.keys.write_text("\n".join(others))
        deadline = time.monotonic() + 20
        while httpx.get(place.server.url + "/models", headers={"x-api-key": key}).is_success:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ws.send(json.dumps(body("leaver", [[0.5]])))
        (error,), code, reason = rest(ws)
        told = json.loads(error)
        assert (told["error"]["code"], told["frame"], code) == ("unauthorized", 2, 1008)
        assert "revoked" in reason
    place.keys.write_text(kept)
    while not httpx.get(place.server.url + "/models", headers={"x-api-key": key}).is_success:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert stands(place.server, key, "leaver") == 1


def test_a_page_from_elsewhere_is_kept_out_before_its_key_is_read(place: Place) -> None:
    """Keys or not."""
    page = {"Origin": "https://evil.example", "Authorization": f"Bearer {place.key('page')}"}
    status, error, _ = refusal(place.server, additional_headers=page)
    assert (status, error["code"]) == (403, "forbidden")


# Places ---------------------------------------------------------------------------------------


def test_a_tenant_and_those_without_a_key_have_their_share_of_places(place: Place) -> None:
    """A quarter each: 429 at the handshake, 1013 once the connection is open."""
    crowd, calm = place.key("crowd"), place.key("calm")
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connected(place.server, **bearer(crowd)))
        status, error, retry_after = refusal(place.server, **bearer(crowd))
        assert (status, error["code"], error["limit"]) == (429, "overloaded", "tenant_connections")
        assert retry_after == str(error["retry_after_s"])
        with connected(place.server) as ws:
            ws.send(json.dumps({"api_key": crowd}))
            (told,), code, _ = rest(ws)
            assert (json.loads(told)["error"]["limit"], code) == ("tenant_connections", 1013)
        unknown = [stack.enter_context(connected(place.server)) for _ in range(2)]
        status, error, _ = refusal(place.server)
        assert (status, error["limit"]) == (429, "unknown_connections")
        with connected(place.server, **bearer(calm)) as ws:  # who has a key gets in
            assert ask(ws, body("calm", [[0.5]]))[0]["step"] == 1
        assert ask(unknown[0], {"api_key": calm}) == [{"authenticated": True}]
        stack.enter_context(connected(place.server))
    deadline = time.monotonic() + 10
    while True:  # the places are free again
        try:
            with connected(place.server, **bearer(crowd)):
                return
        except InvalidStatus:
            assert time.monotonic() < deadline


def test_no_more_than_the_server_takes(place: Place) -> None:
    """Whoever they are."""
    keys = [place.key(f"many-{n}") for n in range(PLACES // 2)]
    with ExitStack() as stack:
        for key in keys:
            for _ in range(2):
                stack.enter_context(connected(place.server, **bearer(key)))
        status, error, _ = refusal(place.server, **bearer(place.key("late")))
        assert (status, error["limit"]) == (429, "connections")


# Sizes and dead peers -------------------------------------------------------------------------


@pytest.mark.parametrize("fragments", [1, 4])
def test_a_frame_over_the_limit_ends_the_connection(place: Place, fragments: int) -> None:
    """1009, in one piece or in several, before it is kept; a frame at the limit is taken."""
    key = place.key("long")
    text = json.dumps(body(f"long-{fragments}", [[0.5]]))
    with connected(place.server, **bearer(key)) as ws:
        assert ask(ws, text.ljust(MAX_BODY_BYTES))[0]["step"] == 1
        piece = text.ljust(MAX_BODY_BYTES + fragments)
        size = len(piece) // fragments
        parts = [piece[n : n + size] for n in range(0, len(piece), size)]
        with suppress(ConnectionClosed):  # it may end before the last has been sent
            ws.send(iter(parts) if fragments > 1 else piece)
        frames, code, _ = rest(ws)
        assert (frames, code) == ([], 1009)
    assert stands(place.server, key, f"long-{fragments}") == 1


def test_a_peer_that_answers_no_ping_is_cut(place: Place) -> None:
    """Pings come; after three intervals without an answer, 1011."""
    start = time.monotonic()
    with BareClient(place.server, Authorization=f"Bearer {place.key('silent')}") as silent:
        got = silent.read_to_end()
    assert got[0] == 0x80 | Opcode.PING
    assert (1011).to_bytes(2, "big") in got
    assert 3 * PING_S < time.monotonic() - start < 20 * PING_S + 2


def test_a_dead_peer_that_takes_nothing_is_cut_and_its_work_abandoned(place: Place) -> None:
    """With replies that can never be written, and requests that were never run."""
    key = place.key("dead")
    frame = encode_requests([Send(0, np.full((2000, 1), 0.1))])
    with BareClient(place.server, 4096, Authorization=f"Bearer {key}") as dead:
        dead.send(encode_requests([], [Binding(0, "dead", "sine-cell")]), Opcode.BINARY)
        with pytest.raises((ConnectionError, TimeoutError)):
            while True:
                dead.send(frame, Opcode.BINARY)
        before = stands(place.server, key, "dead")
        workers = place.server.process.children(recursive=True)
        left = [
            connection
            for process in [place.server.process, *workers]
            for connection in process.net_connections("tcp")
            if connection.raddr and connection.raddr.port == dead.socket.getsockname()[1]
        ]
        assert left == []
        assert stands(place.server, key, "dead") == before > 0


# The end --------------------------------------------------------------------------------------


def test_sigterm_answers_what_was_accepted_and_closes(start: Start) -> None:
    """Text and binary; the farewell says from where on nothing was run; 1001; then it ends."""
    server = start(CAROUSEL_STORE="disk")
    server.wait_until_it_listens()
    long = [[0.1]] * 2000
    with connected(server) as text, connected(server) as binary, connected(server) as idle:
        for n in range(40):
            text.send(json.dumps(body("ws-drain", long, id=n)))
        names = [Binding(n, f"ws-drain-{n}", "sine-cell") for n in range(600)]
        binary.send(encode_requests([Send(n, np.full((50, 1), 0.1)) for n in range(600)], names))
        assert read(text)["id"] == 0
        first = records_in(binary.recv(timeout=30))
        server.terminate()
        told = time.monotonic()
        texts, *text_end = rest(text)
        records = [*first, *(one for frame in rest_of(binary) for one in decode_replies(frame))]
        (farewell,), *idle_end = rest(idle)
        psutil.wait_procs([server.process], timeout=20)
        assert server.process.poll() is not None
        assert time.monotonic() - told < 10
    end = [1001, "the server is shutting down"]
    assert text_end == idle_end == end
    assert (json.loads(farewell)["error"]["code"], json.loads(farewell)["frame"]) == ("draining", 1)
    *answers, last = [json.loads(one) for one in texts]
    assert [one["id"] for one in answers] == list(range(1, len(answers) + 1))
    assert (last["error"]["code"], last["frame"]) == ("draining", len(answers) + 2)
    *done, gone = records
    assert (gone.handle, gone.status) == (NO_HANDLE, 503) or gone.item == gone.handle
    assert sorted(one.item for one in done) == list(range(len(done)))
    assert (gone.frame, gone.item) == ((1, len(done)) if len(done) < 600 else (2, 0))
    again = start(port=server.port)
    again.wait_until_it_listens()
    for session_id, step in [
        ("ws-drain", 2000 * (len(answers) + 1)),
        (f"ws-drain-{len(done) - 1}", 50),
    ]:
        assert httpx.get(f"{again.url}/sessions/{session_id}").json()["step"] == step
    if len(done) < 600:
        assert httpx.get(f"{again.url}/sessions/ws-drain-{len(done)}").status_code == 404


def rest_of(connection: Any) -> list[bytes]:
    frames, code, _ = rest(connection)
    assert code == 1001
    return [frame for frame in frames if isinstance(frame, bytes)]
