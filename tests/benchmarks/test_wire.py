"""What asks over the wire: the load generator counts what it should, and every way gives the
model's y.

The servers are a small Starlette app, and Carousel as it is started for real.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmarks.wire import carousel as carousel_server
from benchmarks.wire import load
from benchmarks.wire.agreement import ArtifactLoop, agree, is_same, rows_of
from benchmarks.wire.carousel import NDJSON, TRITON_STREAM, UNARY, Way, ways
from benchmarks.wire.frame_links import read_frame
from benchmarks.wire.job import Figures, Job, run_load
from benchmarks.wire.link import Link, LinkError, Row
from benchmarks.wire.network import NAME, WIDTH, Loop, Network
from benchmarks.wire.servers import Server
from service.artifact import Artifact, find_artifacts
from tests.benchmarks.peer_app import FORGETTING, RIGHT, start_app

WAYS = ways(NAME)


@pytest.fixture(scope="module")
def app(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_app(tmp_path_factory.mktemp("app"), network)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def carousel(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = carousel_server.start(
        tmp_path_factory.mktemp("carousel"), network.artifacts, WIDTH, {}
    )
    yield server
    server.stop()


def job(server: Server, way: Way, **changes: object) -> Job:
    asked = Job(
        way.link,
        way.path,
        way.port_of(server),
        sessions=4,
        seconds=0.3,
        warm_s=0.1,
        width=WIDTH,
        prefix=f"load-{way.link.replace(' ', '-')}-{time.monotonic_ns()}",
        pids=server.pids(),
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


# The load generator ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [UNARY, NDJSON, TRITON_STREAM])
def test_a_closed_loop_counts_steps_and_the_server_s_cpu_time(way: str, carousel: Server) -> None:
    """All processes of `bentoml serve` are counted: more than one."""
    asked = job(carousel, WAYS[way], seconds=0.5)
    figures = run_load(asked)
    assert len(asked.pids) > 1
    assert figures.steps > 10
    assert 0.5 <= figures.seconds < 5
    assert 0 < figures.server_cpu_s < len(asked.pids) * figures.seconds
    assert 0 < figures.client_cpu_s <= figures.seconds * 1.1
    assert 0 < min(figures.latencies_ms) <= max(figures.latencies_ms) < figures.seconds * 1e3


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
    asyncio.run(agree(way, app, loop, "own"))
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


@pytest.mark.parametrize("way", WAYS)
def test_carousel_agrees_with_the_plain_loop(way: str, carousel: Server, loop: Loop) -> None:
    """The artifact and the stock graph are of the same weights."""
    asyncio.run(agree(WAYS[way], carousel, loop, way.replace(" ", "-")))


def test_a_server_without_states_does_not(app: Server, loop: Loop) -> None:
    """Its first y is right."""
    with pytest.raises(LinkError, match="step 1: y is"):
        asyncio.run(agree(FORGETTING, app, loop, "forgetting"))


def test_an_artifact_s_own_loop_is_the_plain_one(network: Network, loop: Loop) -> None:
    """What agreement is asked with where there is no stock graph."""
    (path,) = find_artifacts(network.artifacts)
    own = ArtifactLoop(Artifact.load(path))
    state, plain = own.start(), loop.start()
    for x in rows_of("own", 5, own.width):
        (y, state), (expected, plain) = own.step(x, state), loop.step(x, plain)
        assert is_same(y, expected)


class Quiet(Link):
    """No server: what was asked since the last flush is answered a moment later."""

    shared = True
    flushes: list[tuple[str, list[int]]] = []  # noqa: RUF012  # of the test's own

    async def connect(self, port: int) -> None:
        self._asked: list[int] = []

    def question(self, session: int, x: Row, *, is_first: bool, step: int | None = None) -> str:
        return "first" if is_first else "next"

    def ask(self, session: int, question: str) -> None:
        self._asked.append(session)
        self.kind = question

    def flush(self) -> None:
        if asked := self._asked:
            self._asked = []
            self.flushes.append((self.kind, [int(self.names[s].split("-")[1]) for s in asked]))
            for number, session in enumerate(reversed(asked)):
                delay = 0.001 * number
                asyncio.get_running_loop().call_later(delay, self._answer, session)

    def _answer(self, session: int) -> None:
        self.answered(session, "")
        self.flush()

    async def close(self) -> None:
        self.fail("closed")


@pytest.mark.parametrize("rate", [None, 400.0])
def test_sessions_ask_together(rate: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three and three of six, over two connections of three: none leaves before all can."""
    monkeypatch.setattr(load, "kind_of", lambda name: Quiet)
    flushes: list[tuple[str, list[int]]] = []
    monkeypatch.setattr(Quiet, "flushes", flushes)
    asked = Job("quiet", "", 0, 6, 0.05, 0.01, WIDTH, "s", rate=rate, connections=2, together=3)
    figures = asyncio.run(load.Load(asked).run())
    begun = [sessions for kind, sessions in flushes if kind == "first"]
    assert begun == [[0, 1, 2], [3, 4, 5]]
    later = [sessions for kind, sessions in flushes if kind == "next"]
    assert {tuple(sessions) for sessions in later} == {(0, 1, 2), (3, 4, 5)}
    assert figures.steps > 6
    assert figures.unanswered == 0


def test_a_percentile_is_a_latency_that_was_measured() -> None:
    """What has no answer is infinitely late."""
    figures = Figures(4, 1.0, 0.0, 0.0, [4.0, 1.0, 3.0, 2.0], 0)
    assert figures.percentiles(0, 25, 50, 99, 100) == [1.0, 1.0, 2.0, 4.0, 4.0]
    late = replace(figures, unanswered=1)
    assert late.percentiles(50, 99) == [3.0, float("inf")]
