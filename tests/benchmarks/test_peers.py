"""The comparison with peers: its checks find what is wrong, its verdicts are those of the figures,
its report says who could not take part.

Peers here are small Starlette apps, right and wrong ones, and Carousel as it is started for real.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers import checks, venvs
from benchmarks.peers.contestants import (
    APPS,
    CAROUSEL,
    CONTESTANTS,
    NAIVE,
    ONE_WORKER,
    TWO_WORKERS,
    WORKER_WAYS,
)
from benchmarks.peers.measure import Findings, Point, ratios_to, summarise
from benchmarks.peers.report import show
from benchmarks.peers.stage import Stage
from benchmarks.peers.verdict import judge
from benchmarks.wire.agreement import rows_of
from benchmarks.wire.asked import Asked, Latency
from benchmarks.wire.carousel import NDJSON, UNARY, WS_FRAME, WS_TEXT
from benchmarks.wire.links import LINKS
from benchmarks.wire.network import WIDTH, Loop, Network
from benchmarks.wire.servers import Server
from tests.benchmarks.peer_app import CROWDED, FORGETTING, HIDDEN, RACING, RIGHT, start_app


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


# The checks --------------------------------------------------------------------------------------


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
    a, b, c, d = rows_of("x", 4, WIDTH)
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


def point(
    contestant: str,
    way: str,
    sessions: int,
    number: int,
    cpu_us: float,
    steps_per_s: float = 100.0,
    tail: float | None = None,
) -> Point:
    latencies = () if tail is None else (Latency(50.0, cpu_us, 1.0, 1.5, tail, 50, 0),)
    asked = Asked(sessions, cpu_us, steps_per_s, 0.1, 2.0, 3.0, 4.0, 100, latencies)
    return Point(contestant, way, number, asked)


def test_ratios_are_to_the_baseline_of_the_same_round() -> None:
    """The machine halves its speed in the second round: the ratio stays."""
    points = [
        point("a", UNARY, 16, 0, 100, tail=9.0),
        point("b", UNARY, 16, 0, 50),
        point("b", UNARY, 16, 1, 100),
        point("a", UNARY, 16, 1, 200, tail=11.0),
    ]
    first, second = summarise(points, "a")
    assert (first.cpu_us, first.ratio, first.p99_ms) == (150, 1.0, 10.0)
    assert (second.contestant, second.cpu_us, second.ratio) == ("b", 75, 0.5)
    assert second.p99_ms is None


def test_who_is_asked_by_more_than_the_baseline_has_a_ratio_to_its_most() -> None:
    """256 sessions in a frame, to 64 that ask one by one; a round without baseline has none."""
    points = [point("a", UNARY, 1, 0, 400), point("a", UNARY, 64, 0, 300)]
    some = [point("b", WS_FRAME, 256, 0, 3), point("b", WS_FRAME, 256, 1, 3)]
    assert ratios_to(points, some, "a") == [0.01]


def test_a_verdict_is_the_median_of_the_rounds_against_its_target() -> None:
    """Just met, missed by a fifth, and by half; what was not measured has none."""
    points = [
        *(point("fastapi", UNARY, 64, number, 100.0) for number in range(3)),
        *(point(NAIVE, UNARY, 64, number, 500.0) for number in range(3)),
        *(point(CAROUSEL, UNARY, 64, n, us, tail=7.5) for n, us in enumerate((125, 90, 160))),
        *(point(CAROUSEL, NDJSON, 64, number, 6.0) for number in range(3)),
    ]
    found = {(one.way, one.what): one for one in judge(points)}
    unary = found[UNARY, "CPU / fastapi's unary"]
    assert (unary.median, unary.smallest, unary.greatest) == (1.25, 0.9, 1.6)
    assert str(unary) == "met"
    assert str(found[UNARY, f"CPU / {NAIVE}'s unary"]) == "missed by 25%"
    assert str(found[NDJSON, "CPU / fastapi's unary"]) == "missed by 20%"
    assert str(found[UNARY, "p99 / p50 at half load"]) == "missed by 50%"
    assert len(found) == 4


def test_two_workers_are_judged_by_what_they_take_and_by_what_they_do() -> None:
    """No more CPU a step, no fewer steps per second, each round for itself."""
    points = [
        *(point(ONE_WORKER, UNARY, 64, n, us, 1000.0) for n, us in enumerate((100, 200))),
        *(point(TWO_WORKERS, UNARY, 64, n, us, 800.0) for n, us in enumerate((104, 208))),
    ]
    cpu, rate = judge(points)
    assert (cpu.median, str(cpu)) == (1.04, "met")
    assert (rate.median, rate.at_least, str(rate)) == (0.8, True, "missed by 19%")


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
    show([], findings, [], "fastapi")
    assert "odd could not be measured: odd cannot be installed here" in capsys.readouterr().out


def test_the_command_measures_checks_and_writes(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run of Carousel alone: figures, losses (none by kill -9), JSON and a plot."""
    out, picture = tmp_path / "peers.json", tmp_path / "peers.png"
    cache = network.folder.parents[1]
    (tmp_path / "model").symlink_to(cache)
    flags = ["--short", "--seconds", "0.2", "--hidden", str(HIDDEN), "--cache", str(tmp_path)]
    flags += ["--contestants", "carousel", "--baseline", "carousel", "--ways", "unary", "ndjson"]
    assert command.main([*flags, "--json", str(out), "--plot", str(picture)]) == 0
    found = json.loads(out.read_text())
    assert [(row["way"], row["sessions"]) for row in found["rows"]] == [
        ("unary", 16),
        ("ndjson", 16),
    ]
    verdicts = {(one["way"], one["what"]) for one in found["verdicts"]}
    assert verdicts == {(way, "p99 / p50 at half load") for way in ("unary", "ndjson")}
    assert all(row["cpu_us"] > 0 and row["p50_ms"] <= row["p99_ms"] for row in found["rows"])
    assert found["rows"][0]["ratio"] == 1.0
    assert found["losses"][0]["retried"] == "once"
    assert re.fullmatch("0 of [1-8]", found["losses"][0]["killed"])
    assert found["conditions"]["hidden"] == HIDDEN
    assert picture.read_bytes().startswith(b"\x89PNG")
    out_text = capsys.readouterr().out
    assert "who loses what" in out_text
    assert "what was aimed at" in out_text


def test_every_way_has_a_link_and_every_peer_its_pins() -> None:
    """No peer without exact versions; ways name what there is."""
    for contestant in CONTESTANTS.values():
        assert all(way.link in LINKS for way in contestant.ways.values())
        if contestant.app is not None:
            lines = (APPS / contestant.app / "requirements.txt").read_text().splitlines()
            packages = [line for line in lines if not line.startswith("#")]
            assert packages and all("==" in line for line in packages)
    assert CONTESTANTS["fastapi"].ways[WS_TEXT].path == "/ws/{session}"
    assert CONTESTANTS[TWO_WORKERS].ways == CONTESTANTS[ONE_WORKER].ways == WORKER_WAYS
