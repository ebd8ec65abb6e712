"""`export` for tests of how a module is taken and lowered: the same road with less of the proof.

The gate's cases are `STEPS` long in place of its own length, and no report is drawn, which takes a
fifth of an export. What the gate asks over its whole length, and what the report shows, is tested
with `export.exporter.export` itself: tests/export/test_exporter.py, tests/laws, and the commands.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from export import cases, exporter
from export.exporter import Exported
from export.onnx_in.source import OnnxSource
from export.source import Source

STEPS = 300  # of a case: some ten chunks, and what a window or a running sum forgets is forgotten


@contextmanager
def proof() -> Iterator[None]:
    """Every export inside asks and shows less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "STEPS", STEPS)
        patch.setattr(exporter, "write_report", lambda *_: None)
        patch.setattr(exporter, "measure_gates", lambda *_: [])
        yield


def export(source: Source | OnnxSource, name: str, out: Path, **options: Any) -> Exported:
    """As `export.exporter.export`, whose arguments it takes; no parity.json, .html nor .md."""
    with proof():
        return exporter.export(source, name, out, **options)
