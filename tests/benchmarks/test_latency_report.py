"""The report of made-up points: which pictures there are, and what the page and the table say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.latency.contestants import EAGER, STOCK
from benchmarks.latency.page import grids, headline
from benchmarks.latency.point import IN_PROCESS, WIRE, Findings, Model, Point
from benchmarks.latency.report import write_report

CONDITIONS = {"cpu": "a <cpu>", "begun": "today", "threads": 1}
L256, L128 = (Model(f"lstm-{h}", "lstm", 8, h, 1, is_made=True) for h in (256, 128))
FP32 = Point(IN_PROCESS, "lstm-128", "onnx-fp32", 1, 1, 99, 20, 30, 90, 5e4, 18, STOCK, 0.9)
INSIDE = [
    FP32,
    replace(FP32, contestant=STOCK, cpu_us=21, ratio=1.0),
    replace(FP32, contestant=EAGER, cpu_us=90, ratio=4.5),
    replace(FP32, model="lstm-256", cpu_us=45, ratio=1.2),
]
UNARY = Point(WIRE, "lstm-128", "unary", 16, 1, 99, 500, 900, 4e3, 3e3, 300, "unary", 1.0, "disk")
ASKED = [
    UNARY,
    replace(UNARY, rows=64, cpu_us=250),
    replace(UNARY, contestant="ndjson", cpu_us=30, ratio=0.1),
    replace(UNARY, asked_per_s=1_500.0, ratio=None, baseline=None),
]


def test_a_report_of_both_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture for each question that the points answer; pictures of an earlier run go."""
    (tmp_path / "step-batch-1024.png").write_bytes(b"old")
    findings = Findings([L128, L256], [*INSIDE, *ASKED], {"OpenVINO: lstm-128": "not <there>"})
    page = write_report(findings, CONDITIONS, tmp_path)
    names = {path.stem for path in tmp_path.glob("*.png")}
    wire = {"wire-lstm-128-disk", "open-loop-lstm-128-disk"}
    assert names == {"step-batch-1", "latency-lstm-128", *wire}
    assert all(path.read_bytes()[1:4] == b"PNG" for path in tmp_path.glob("*.png"))
    html = page.read_text()
    assert html.count("<figure>") == 4 and "#0000f" not in html and "#0000a" not in html
    assert "a &lt;cpu&gt;" in html and "not &lt;there&gt;" in html
    assert "over the wire, ndjson instead of unary: 10.0 times as fast with 16 sessions" in html
    report = json.loads((tmp_path / "latency.json").read_text())
    assert [Point(**p) for p in report["points"]] == findings.points
    assert [Model(**m) for m in report["models"]] == findings.models
    out = capsys.readouterr().out
    assert "OpenVINO: lstm-128 did not take part: not <there>" in out and "1,500/s" in out


def test_a_report_of_the_wire_alone(tmp_path: Path) -> None:
    """It says nothing of what was not measured."""
    html = write_report(Findings([L128], ASKED), CONDITIONS, tmp_path).read_text()
    assert "<h2>Over the wire</h2>" in html
    for section in ("In process", "As ratios", "Next to stock", 'class="verdict"'):
        assert section not in html.split("</style>")[1]


def test_the_headline_is_of_the_typical_model() -> None:
    """Its ratios are of one round, not of medians: 0.9, where 18 / 21 is 0.86."""
    assert headline(INSIDE) == (
        "One step of lstm-128 as onnx-fp32: p50 20.0 us, p99 90.0 us. Its CPU time over that of "
        "ONNX Runtime: 0.90 at batch 1. Its CPU time over that of torch eager: 0.20 at batch 1."
    )
    assert headline(ASKED) == ""


def test_ratios_say_who_is_faster() -> None:
    """Next to stock; a model that stock was not measured on has no row."""
    (grid,) = grids(INSIDE)
    assert grid.title == "onnx-fp32 / ONNX Runtime"
    assert [[cell.text for cell in row] for row in grid.rows] == [["lstm-128", "0.90"]]
    assert grid.rows[0][1].kind == "n good"
