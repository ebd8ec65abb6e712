"""Every example of docs/serving.md, run as it stands there, against the demo models."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Server
from tests.e2e.documents import Example, examples, steady

EXAMPLES = examples((ROOT / "docs/serving.md").read_text())
TIMEOUT_S = 60


@pytest.mark.needs("curl")
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_prints_what_it_shows(
    example: Example, demo_server: Server, tmp_path: Path
) -> None:
    """In the document's order, since one may go on with another's session."""
    code = example.code.replace("localhost:3000", f"127.0.0.1:{demo_server.port}")
    code = code.replace("localhost:3001", demo_server.grpc_address)
    code = code.replace(".venv/bin/python", sys.executable)
    command = {"console": ["bash", "-c", code], "python": [sys.executable, "-c", code]}
    done = subprocess.run(
        command[example.language],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert steady(done.stdout) == steady(example.shown)
