"""The int8 benchmark measures what it says, on a cell small enough for a test."""

import json
from pathlib import Path

from benchmarks.int8 import main


def test_it_reports_every_point_and_the_drift(tmp_path: Path) -> None:
    """Two batch sizes of a step and of a chunk: ratios, their mean, and a drift above zero."""
    target = tmp_path / "int8.json"
    options = "--hidden 32 --batch 1 3 --chunk 4 --turns 3 --drift-steps 200 --iterations 5"
    assert main([*options.split(), "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    points = {(p["batch"], p["steps"]): p for p in report["points"]}
    assert set(points) == {(1, 1), (3, 1), (1, 4), (3, 4)}
    ratios = [points[batch, 1]["ratio"] for batch in (1, 3)]
    assert abs(report["geometric_mean"]["1"] - (ratios[0] * ratios[1]) ** 0.5) < 1e-9
    (drift,) = report["drift"]
    assert 0 < 2 * drift["rowwise"] <= drift["stock"] < 0.05
    assert report["conditions"]["cpu"]


def test_an_untrained_cell_is_timed_too(tmp_path: Path) -> None:
    """Its h is the output."""
    target = tmp_path / "int8.json"
    options = "--hidden 32 --batch 1 --chunk 4 --turns 3 --drift-steps 0 --untrained"
    assert main([*options.split(), "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["conditions"]["training_iterations"] == 0
    assert len(report["points"]) == 2 and not report["drift"]
