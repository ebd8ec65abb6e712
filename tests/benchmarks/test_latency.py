"""The latency script measures every variant and says under which conditions."""

import json
from pathlib import Path

import pytest

from benchmarks.latency import main
from service.artifact import Artifact


def test_every_variant_and_torch_eager_take_part(
    demo_artifacts: dict[str, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run: six contestants a model, positive times, eager's ratio to itself is 1."""
    root = demo_artifacts["sine-cell"].path.parents[1]
    report = tmp_path / "latency.json"
    flags = ["--batch", "1", "4", "--rounds", "2", "--calls", "3", "--json", str(report)]
    assert main(["--artifacts", str(root), *flags]) == 0
    found = json.loads(report.read_text())
    assert found["conditions"]["threads"] == 1
    contestants = {(row["model"], row["contestant"], row["batch"]) for row in found["rows"]}
    names = ["torch eager", *demo_artifacts["sine-cell"].manifest.variants]
    assert contestants == {(m, n, b) for m in demo_artifacts for n in names for b in (1, 4)}
    assert all(0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"] for row in found["rows"])
    assert {r["ratio"] for r in found["rows"] if r["contestant"] == "torch eager"} == {1.0}
    assert "series-lstm" in capsys.readouterr().out


def test_nothing_to_measure_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1 and what to do."""
    assert main(["--artifacts", str(tmp_path)]) == 1
    assert "holds no artifact; run `make demos`" in capsys.readouterr().err
