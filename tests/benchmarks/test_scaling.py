"""The benchmark of growth runs, its formula says what was measured, and the document what the run
found. No time is asserted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import capacity
from benchmarks.capacity import Demand, disk_bytes, fit, need
from benchmarks.scaling.__main__ import main
from benchmarks.scaling.findings import MEASURED, Findings, read_findings
from benchmarks.scaling.report import parts, rewrite

DOCUMENT = MEASURED.with_suffix(".md")


@pytest.fixture(scope="module")
def measured() -> Findings:
    return read_findings(MEASURED)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures of a short run of what needs no server."""
    folder = tmp_path_factory.mktemp("scaling")
    sizes = ["--asleep", "10", "2000", "--rounds", "1"]
    wanted = ["--parts", "in-process", "upkeep", "--picture", str(folder / "picture.png")]
    files = ["--cache", str(folder / "models"), "--json", str(folder / "found.json")]
    assert main([*sizes, *wanted, *files]) == 0
    return folder / "found.json"


def test_a_short_run_measures_every_point(short: Path) -> None:
    """Each age beside each number of sleepers, one alone and in a batch; and a picture of it."""
    found = read_findings(short)
    points = {(p.load, p.asleep, p.age, p.batch) for p in found.points}
    wanted = {
        ("awake", asleep, age, batch)
        for asleep in (10, 2000)
        for age in (1, 1_000, 1_000_000)
        for batch in (1, 64)
    }
    any_sleeper = {("any", 10, 1, 1), ("any", 2000, 1, 1), ("any", 2000, 1, 64)}
    assert points == wanted | any_sleeper
    assert [one.asleep for one in found.upkeep] == [10, 2000]
    assert (short.parent / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_formula_of_the_disk_is_what_the_disk_holds(short: Path) -> None:
    """It is computed from the layout, so nothing of it is fitted."""
    (_, held) = read_findings(short).held
    assert disk_bytes(2000, held.state_bytes) / 2000 == pytest.approx(held.disk_bytes, rel=0.05)


def test_the_document_says_what_the_run_found(measured: Findings) -> None:
    """`python -m benchmarks.scaling --json .. --document ..` writes both."""
    text = DOCUMENT.read_text()
    assert rewrite(text, measured) == text
    for part in parts(measured):
        assert f"<!-- measured: {part.name} -->" in text, part.name


def test_a_figure_that_changed_is_seen_in_the_document(measured: Findings) -> None:
    """The test before can fail."""
    changed = replace(measured.held[-1], disk_bytes=measured.held[-1].disk_bytes + 1000)
    found = replace(measured, held=[*measured.held[:-1], changed])
    assert rewrite(DOCUMENT.read_text(), found) != DOCUMENT.read_text()


def test_what_was_measured_at_both_ends_is_what_the_formula_says(measured: Findings) -> None:
    """Redis' bytes are a line through two points; between them it was checked, see the document."""
    constants = fit(measured)
    for one in (measured.redis[0], measured.redis[-1]):
        said = capacity.redis_bytes(constants, one.state_bytes)
        assert said == pytest.approx(one.memory_bytes, rel=1e-6)


def test_the_formula_grows_with_each_demand(measured: Findings) -> None:
    """Twice the steps take twice the cores and the network, and no more disk."""
    constants = fit(measured)
    one = need(Demand(1_000_000, 1.0, way="unary"), constants)
    two = need(Demand(1_000_000, 2.0, way="unary"), constants)
    assert two.cores == pytest.approx(2 * one.cores)
    assert two.network_gb_s == pytest.approx(2 * one.network_gb_s)
    assert two.disk_gb == one.disk_gb
    assert need(Demand(1_000_000, 1.0, 4_232), constants).disk_gb > one.disk_gb
    assert need(Demand(1_000_000, 1.0, way="ws binary"), constants).cores < one.cores
    assert need(Demand(10, 0.1), constants).workers == 1


def test_the_command_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    """In words, and as JSON."""
    asked = ["--sessions", "10000000", "--steps-per-second", "2", "--state-bytes", "1024"]
    assert capacity.main(asked) == 0
    out = capsys.readouterr().out
    assert "10,000,000 live sessions" in out and "20,000,000 a second" in out
    assert capacity.main([*asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["need"]["steps_per_second"] == 20_000_000
    assert answer["need"]["workers"] >= answer["need"]["cores"]


def test_without_figures_it_says_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--sessions", "1", "--steps-per-second", "1", "--measured", str(tmp_path / "none")]
    assert capacity.main(asked) == 1
    assert "python -m benchmarks.scaling --json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--sessions", "0", "--steps-per-second", "1"],
        ["--sessions", "1", "--steps-per-second", "0"],
        ["--sessions", "1", "--steps-per-second", "1", "--utilization", "1.5"],
        ["--sessions", "1", "--steps-per-second", "1", "--way", "pigeon"],
    ],
)
def test_a_demand_without_sense_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        capacity.main(wrong)
