"""The report's files in the artifact's folder."""

import json
from pathlib import Path

from export.reporting.evidence import Evidence
from export.reporting.markdown import as_markdown
from export.reporting.page import as_page
from export.reporting.record import as_record


def write_report(folder: Path, evidence: Evidence) -> None:
    """Write parity.json, parity.html and parity.md."""
    record = json.dumps(as_record(evidence), separators=(",", ":"), allow_nan=False)
    (folder / "parity.json").write_text(record + "\n")
    (folder / "parity.html").write_text(as_page(evidence), encoding="utf-8")
    (folder / "parity.md").write_text(as_markdown(evidence), encoding="utf-8")
