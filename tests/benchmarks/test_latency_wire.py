"""The latency script over the wire: a server is asked, and what it says is told in points."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.latency.point import WIRE, Findings
from benchmarks.latency.wire import Cell, Plan, Wire, points_of
from benchmarks.wire import carousel
from benchmarks.wire.asked import Asked, Latency, Times
from benchmarks.wire.carousel import NDJSON, UNARY, WS_FRAME
from benchmarks.wire.network import NAME, Network
from benchmarks.wire.servers import ServerError
from service.artifact import Artifact, find_artifacts

TIMES = Times(warm_s=0.05, closed_s=0.1, open_s=0.2)


def plan_of(artifact: Artifact, cache: Path) -> Plan:
    ways, stores = (UNARY, WS_FRAME), ("memory",)
    return Plan([], [artifact], ways, (1, 3), stores, (0.5,), (40.0,), 1, TIMES, cache)


@pytest.fixture
def artifact(network: Network) -> Artifact:
    (path,) = find_artifacts(network.artifacts)
    return Artifact.load(path)


def test_a_real_server_is_asked_in_closed_and_open_loops(
    artifact: Artifact, tmp_path: Path
) -> None:
    """Two ways, by one session and three; half of what was reached, and 40 steps a second."""
    wire, findings, told = Wire(plan_of(artifact, tmp_path)), Findings(), list[str]()
    wire.measure(findings, told.append)
    assert findings.absent == {}
    assert len(told) == wire.turns
    assert [model.name for model in findings.models] == [NAME]
    points = findings.points
    assert {(p.part, p.model, p.store, p.steps) for p in points} == {(WIRE, NAME, "memory", 1)}
    cells = [(p.contestant, p.rows) for p in points if p.asked_per_s is None]
    assert cells == [(UNARY, 1), (UNARY, 3), (WS_FRAME, 1), (WS_FRAME, 3)]
    for closed, half, fixed in zip(points[::3], points[1::3], points[2::3], strict=True):
        assert closed.cpu_us > 0
        assert closed.baseline == UNARY and (closed.contestant != UNARY or closed.ratio == 1.0)
        assert half.asked_per_s == pytest.approx(closed.steps_per_s / 2)
        assert fixed.asked_per_s == 40.0
        assert abs(fixed.calls - 40 * TIMES.open_s) <= 3
        assert all(p.calls > 0 and 0 < p.p50_us <= p.p90_us <= p.p99_us for p in (closed, fixed))


def test_points_are_medians_over_the_rounds_and_ratios_of_one() -> None:
    """The machine halves its speed in the second round, in which the rate is halved too."""

    def asked(cpu_us: float, p50_ms: float) -> Asked:
        slow = Latency(500.0 / p50_ms, cpu_us, p50_ms, p50_ms * 2, p50_ms * 3, 10, 0)
        return Asked(4, cpu_us, 1000.0 / p50_ms, 0.1, p50_ms, p50_ms, p50_ms, 20, (slow,))

    unary = Cell("m", UNARY, 4, "disk", {0: asked(100.0, 1.0), 1: asked(200.0, 2.0)})
    lines = Cell("m", NDJSON, 4, "disk", {0: asked(10.0, 1.0), 1: asked(20.0, 2.0)})
    alone = replace(lines, store="memory")
    cells = {(c.model, c.way, c.sessions, c.store): c for c in (unary, lines, alone)}
    points = list(points_of(cells))
    closed, opened = points[2:4]
    assert (closed.contestant, closed.ratio, closed.baseline) == (NDJSON, 0.1, UNARY)
    assert (closed.cpu_us, closed.p50_us, closed.steps_per_s, closed.calls) == (15, 1500, 750, 40)
    assert (opened.asked_per_s, opened.p99_us, opened.calls) == (375, 4500, 20)
    assert (points[4].store, points[4].ratio, points[4].baseline) == ("memory", None, None)


def test_who_cannot_be_asked_is_absent_with_the_reason(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not start; a model of tokens."""

    def start(*_: object) -> None:
        raise ServerError("it did not start: no room\nend of its log")

    monkeypatch.setattr(carousel, "start", start)
    findings = Findings()
    Wire(plan_of(artifact, tmp_path)).measure(findings, lambda what: None)
    x = artifact.manifest.ports.x.model_copy(update={"dtype": "int64", "shape": ["B", "T"]})
    ports = artifact.manifest.ports.model_copy(update={"x": x})
    manifest = artifact.manifest.model_copy(update={"ports": ports, "name": "text"})
    tokens = replace(artifact, manifest=manifest)
    Wire(plan_of(tokens, tmp_path)).measure(findings, lambda what: None)
    assert findings.points == []
    assert findings.absent == {
        "store memory, over the wire: lstm": "it did not start: no room\nend of its log",
        "over the wire: text": "x is int64 ['B', 'T'], here rows of numbers are sent",
    }
