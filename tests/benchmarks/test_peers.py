"""The comparison with peers: its load generator counts what it should, its checks find what is
wrong, its report says who could not take part.

Peers here are small Starlette apps, right and wrong ones, and Carousel as it is started for real.
"""

import asyncio
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers import checks, servers, venvs
from benchmarks.peers.contestants import (
    APPS,
    CONTESTANTS,
    NDJSON,
    UNARY,
    WAYS,
    WEBSOCKET_TEXT,
    Way,
)
from benchmarks.peers.measure import Findings, Point, run_load, summarise
from benchmarks.peers.report import show
from benchmarks.peers.stage import Stage
from benchmarks.wire.client import wait_until_it_answers
from benchmarks.wire.frame_links import read_frame
from benchmarks.wire.link import LinkError
from benchmarks.wire.links import LINKS
from benchmarks.wire.load import Job
from benchmarks.wire.network import WIDTH, Loop, Network, write_network
from benchmarks.wire.servers import Server

HIDDEN = 16
APP = """
import asyncio, os
import numpy as np, onnxruntime as ort
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

model = ort.InferenceSession(os.environ["PEERS_MODEL"])
states, busy = {}, 0

def run(rows, state):
    h, c = state or (np.zeros((1, 1, HIDDEN), np.float32),) * 2
    y, h, c = model.run(None, {"x": np.array([rows], np.float32), "h": h, "c": c})
    return y[0].tolist(), (h, c)

async def right(request):
    body = await request.json()
    y, states[body["session_id"]] = run(body["x"], states.get(body["session_id"]))
    return JSONResponse({"y": y})

async def racing(request):  # others get in between its look at the state and its change of it
    body = await request.json()
    state = states.get(body["session_id"])
    await asyncio.sleep(0.005)
    y, states[body["session_id"]] = run(body["x"], state)
    return JSONResponse({"y": y})

async def forgetting(request):
    y, _ = run((await request.json())["x"], None)
    return JSONResponse({"y": y})

async def crowded(request):  # y depends on who else is there
    global busy
    busy += 1
    await asyncio.sleep(0.002)
    body = await request.json()
    y, states[body["session_id"]] = run(body["x"], states.get(body["session_id"]))
    y[0][0] += 1e-3 * (busy > 1)
    busy -= 1
    return JSONResponse({"y": y})

async def stream(socket):
    await socket.accept()
    state = None
    async for data in socket.iter_json():
        y, state = run(data["x"], state)
        await socket.send_json({"y": y})

app = Starlette(routes=[
    *(Route("/" + f.__name__, f, methods=["POST"]) for f in (right, racing, forgetting, crowded)),
    WebSocketRoute("/ws/{session}", stream),
])
""".replace("HIDDEN", str(HIDDEN))
RIGHT, RACING, FORGETTING, CROWDED = (
    Way("http", path) for path in ("/right", "/racing", "/forgetting", "/crowded")
)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return write_network(tmp_path_factory.mktemp("model"), HIDDEN)


@pytest.fixture(scope="module")
def loop(network: Network) -> Loop:
    return Loop(network)


def start_app(folder: Path, network: Network, port: int | None = None) -> Server:
    (folder / "peer_app.py").write_text(APP)
    port = port or servers.free_port()
    uvicorn = [sys.executable, "-m", "uvicorn", "peer_app:app", "--port", str(port)]
    settings = {"PEERS_MODEL": str(network.stock)}
    server = servers.start(uvicorn, folder, settings, folder / "log", port)
    asyncio.run(wait_until_it_answers(server, RIGHT.link, RIGHT.path, WIDTH))
    return server


@pytest.fixture(scope="module")
def app(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_app(tmp_path_factory.mktemp("app"), network)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def stage(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("cache"), network)
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def carousel(stage: Stage) -> Iterator[Server]:
    server = stage.start(CONTESTANTS["carousel"])
    yield server
    server.stop()


def job(server: Server, way: Way, **changes: object) -> Job:
    asked = Job(
        way.link,
        way.path,
        server.port,
        sessions=4,
        seconds=0.3,
        warm_s=0.1,
        width=WIDTH,
        prefix=f"load-{way.link.replace(' ', '-')}-{time.monotonic_ns()}",
        pids=server.pids(),
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


# The load generator ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [UNARY, NDJSON])
def test_a_closed_loop_counts_steps_and_the_server_s_cpu_time(way: str, carousel: Server) -> None:
    """All processes of `bentoml serve` are counted: more than one."""
    asked = job(carousel, CONTESTANTS["carousel"].ways[way], seconds=0.5)
    figures = run_load(asked)
    assert len(asked.pids) > 1
    assert figures.steps > 10
    assert 0.5 <= figures.seconds < 5
    assert 0 < figures.server_cpu_s < len(asked.pids) * figures.seconds
    assert 0 < figures.client_cpu_s <= figures.seconds * 1.1
    assert figures.latencies_ms == []


def test_an_open_loop_asks_at_its_rate(app: Server) -> None:
    """As many as are due in the window have a latency, whatever the server does."""
    figures = run_load(job(app, RIGHT, rate=100.0, seconds=0.5))
    assert abs(len(figures.latencies_ms) - 50) <= 1
    assert figures.unanswered == 0
    assert min(figures.latencies_ms) > 0


def test_a_server_that_hangs_is_charged_for_all_who_wait(app: Server) -> None:
    """A client that waits for a reply before it asks anew would count four late ones."""
    asked = job(app, RIGHT, rate=200.0, seconds=1.0, warm_s=0.2)
    timers = [threading.Timer(0.9, app.process.suspend), threading.Timer(1.5, app.process.resume)]
    for timer in timers:
        timer.start()
    figures = run_load(asked)
    for timer in timers:
        timer.join()
    assert sum(latency > 50 for latency in figures.latencies_ms) > 20


def test_a_websocket_of_a_session_s_own_is_asked(app: Server, loop: Loop) -> None:
    """The frames are understood by a real server, and its by us; y is the plain loop's."""
    way = Way("own text frames", "/ws/{session}")
    asyncio.run(checks.agree(way, app.port, loop, "own"))
    assert run_load(job(app, way)).steps > 10


def test_what_is_refused_is_said(app: Server) -> None:
    """The status and the reply, from another process."""
    with pytest.raises(LinkError, match="404 Not Found"):
        run_load(job(app, Way("http", "/nowhere")))
    with pytest.raises(LinkError, match=r"no WebSocket: HTTP/1[.]1 403"):
        run_load(job(app, Way("text frames", "/nowhere")))


@pytest.mark.parametrize("size", [0, 5, 125, 126, 70_000])
def test_a_frame_is_read_only_when_it_is_whole(size: int) -> None:
    """In all three forms of its length."""
    head = bytes([0x82]) + (
        bytes([size])
        if size < 126
        else b"\x7e" + size.to_bytes(2)
        if size < 1 << 16
        else b"\x7f" + size.to_bytes(8)
    )
    frame = head + b"v" * size
    assert read_frame(frame[:-1], 0) is None
    assert read_frame(b"before" + frame + b"after", 6) == (2, b"v" * size, 6 + len(frame))


# The checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_carousel_agrees_with_the_plain_loop(way: str, carousel: Server, loop: Loop) -> None:
    """The artifact and the stock graph are of the same weights."""
    asyncio.run(
        checks.agree(CONTESTANTS["carousel"].ways[way], carousel.port, loop, way.replace(" ", "-"))
    )


def test_a_server_without_states_does_not(app: Server, loop: Loop) -> None:
    """Its first y is right."""
    with pytest.raises(LinkError, match="step 1: y is"):
        asyncio.run(checks.agree(FORGETTING, app.port, loop, "forgetting"))


def test_lost_states_of_a_shared_session_are_counted(
    app: Server, carousel: Server, loop: Loop
) -> None:
    """A dict that is read and then written loses some; one step at a time, and Carousel, none."""
    of_carousel = CONTESTANTS["carousel"].unary
    racing = asyncio.run(checks.share(RACING, app.port, loop, "racing", 4, 4))
    right = asyncio.run(checks.share(RIGHT, app.port, loop, "right", 4, 4))
    ours = asyncio.run(checks.share(of_carousel, carousel.port, loop, "shared", 4, 4))
    assert racing.lost > 0
    assert str(right) == str(ours) == "none of 17"


def test_forks_and_strangers_are_told_apart(loop: Loop) -> None:
    """Of five replies three are a chain, one forks from it, and one has no place."""
    a, b, c, d = checks.rows_of("x", 4, WIDTH)
    after_a = loop.step(a, loop.start())
    after_b = loop.step(b, after_a[1])
    replies = [(x, y.tolist()) for x, (y, _) in ((c, loop.step(c, after_b[1])), (b, after_b))]
    replies += [(a, after_a[0].tolist()), (d, loop.step(d, after_a[1])[0].tolist())]
    replies += [(d, [9.0] * WIDTH)]
    assert checks.longest_chain(replies, loop) == (3, 4)
    shared = checks.Shared(5, lost=1, wrong=1, refused=0)
    assert str(shared) == "1 lost, 1 wrong of 5"


def test_a_step_that_is_sent_again_counts_once_or_twice(
    app: Server, carousel: Server, loop: Loop
) -> None:
    """With its index Carousel knows it; a dict does not; without a state it is neither."""
    ours = CONTESTANTS["carousel"].unary
    check = checks.retry
    assert asyncio.run(check(ours, carousel.port, loop, "again", says_step=True)) == "once"
    assert asyncio.run(check(ours, carousel.port, loop, "anew", says_step=False)) == "twice"
    assert asyncio.run(check(RIGHT, app.port, loop, "again", says_step=False)) == "twice"
    neither = asyncio.run(check(FORGETTING, app.port, loop, "again", says_step=False))
    assert neither == "neither once nor twice"


def test_what_neighbours_change_is_counted_in_bits(
    app: Server, carousel: Server, loop: Loop
) -> None:
    """Where y depends on the crowd, and where it does not."""
    bad = asyncio.run(checks.crowd(CROWDED, app.port, loop, "bad", 4))
    assert bad.changed > 0
    assert 5e-4 < bad.by < 2e-3
    ours = asyncio.run(checks.crowd(CONTESTANTS["carousel"].unary, carousel.port, loop, "crowd", 4))
    assert str(ours) == "0 of 24"


def test_a_kill_loses_what_was_only_in_memory(network: Network, loop: Loop, tmp_path: Path) -> None:
    """A dict loses every session; what Carousel does, the command's test below tells."""
    server = start_app(tmp_path, network)
    killed = checks.Killed(RIGHT, server.port, loop, "killed", 4)
    asyncio.run(killed.load(server.kill, 0.2))
    assert server.pids() == []
    server = start_app(tmp_path, network, server.port)
    assert killed.begun == [0, 1, 2, 3]
    assert asyncio.run(killed.lost()) == 4
    unheard = checks.Killed(RIGHT, server.port, loop, "unheard", 4)
    assert unheard.begun == []
    server.stop()


# The report --------------------------------------------------------------------------------------


def test_ratios_are_to_the_baseline_of_the_same_round() -> None:
    """The machine halves its speed in the second round: the ratio stays."""

    def point(contestant: str, number: int, cpu_us: float) -> Point:
        return Point(contestant, "unary", 16, number, cpu_us, 100.0, 0.1, 1.0 + number, 2.0)

    points = [point("a", 0, 100), point("b", 0, 50), point("b", 1, 100), point("a", 1, 200)]
    first, second = summarise(points, "a")
    assert (first.cpu_us, first.ratio, first.p50_ms) == (150, 1.0, 1.5)
    assert (second.contestant, second.cpu_us, second.ratio) == ("b", 75, 0.5)


def test_what_cannot_be_installed_is_reported_with_pip_s_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no figure, and no silence."""
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "requirements.txt").write_text("carousel-no-such-package==1.0\n")
    monkeypatch.setattr(venvs, "APPS", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(venvs.VenvError, match=r"odd cannot be installed here: .*no-such-package"):
        venvs.make_venv(tmp_path / "cache", "odd")
    findings = Findings(troubles={"odd": "odd cannot be installed here"})
    show([], findings, "fastapi")
    assert "odd could not be measured: odd cannot be installed here" in capsys.readouterr().out


def test_the_command_measures_checks_and_writes(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run of Carousel alone: figures, losses (none by kill -9), JSON and a plot."""
    out, picture = tmp_path / "peers.json", tmp_path / "peers.png"
    cache = network.folder.parent
    (tmp_path / "model").symlink_to(cache)
    flags = ["--short", "--seconds", "0.2", "--hidden", str(HIDDEN), "--cache", str(tmp_path)]
    flags += ["--contestants", "carousel", "--baseline", "carousel", "--ways", "unary", "ndjson"]
    assert command.main([*flags, "--json", str(out), "--plot", str(picture)]) == 0
    found = json.loads(out.read_text())
    assert [(row["way"], row["sessions"]) for row in found["rows"]] == [
        ("unary", 16),
        ("ndjson", 16),
    ]
    assert all(row["cpu_us"] > 0 and row["p50_ms"] <= row["p99_ms"] for row in found["rows"])
    assert found["rows"][0]["ratio"] == 1.0
    assert found["losses"][0]["retried"] == "once"
    assert re.fullmatch("0 of [1-8]", found["losses"][0]["killed"])
    assert found["conditions"]["hidden"] == HIDDEN
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "who loses what" in capsys.readouterr().out


def test_every_way_has_a_link_and_every_peer_its_pins() -> None:
    """No peer without exact versions; ways name what there is."""
    for contestant in CONTESTANTS.values():
        assert all(way.link in LINKS for way in contestant.ways.values())
        if contestant.app is not None:
            lines = (APPS / contestant.app / "requirements.txt").read_text().splitlines()
            packages = [line for line in lines if not line.startswith("#")]
            assert packages and all("==" in line for line in packages)
    assert CONTESTANTS["fastapi"].ways[WEBSOCKET_TEXT].path == "/ws/{session}"
    assert np.isfinite(checks.ATOL)
