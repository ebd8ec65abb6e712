"""The report of a run: the terminal, and latency.json, latency.html and PNGs in a folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.latency.advisor import advise
from benchmarks.latency.figures import pictures
from benchmarks.latency.page import as_page
from benchmarks.latency.point import Findings
from benchmarks.latency.standing import targets
from benchmarks.latency.table import show


def write_report(findings: Findings, conditions: Mapping[str, object], folder: Path) -> Path:
    """Show it, write all files, and return the page's path."""
    found = targets(findings.models, findings.points)
    advice = advise(findings.models, findings.points)
    drawn = pictures(findings.models, findings.points)
    show(findings, found, advice)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()  # of an earlier run with other models
    for picture in drawn:
        picture.write_png(folder)
    report = {
        "conditions": conditions,
        "models": [asdict(model) for model in findings.models],
        "points": [asdict(point) for point in findings.points],
        "absent": findings.absent,
        "targets": [asdict(target) for target in found],
        "advice": [asdict(one) for one in advice],
    }
    (folder / "latency.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    page = folder / "latency.html"
    page.write_text(as_page(findings, conditions, found, advice, drawn), encoding="utf-8")
    return page
