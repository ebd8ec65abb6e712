"""Every example of docs/serving.md, run as it stands there, against the demo models."""

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.browser import dom_of
from tests.e2e.conftest import ROOT, Server
from tests.e2e.documents import Example, examples, steady

EXAMPLES = examples((ROOT / "docs/serving.md").read_text())
TIMEOUT_S = 60


PROGRAMS = {"console": ["curl"], "python": [], "html": ["chromium"]}


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(example, marks=pytest.mark.needs(*PROGRAMS[example.language]), id=str(example))
        for example in EXAMPLES
    ],
)
def test_an_example_prints_what_it_shows(
    example: Example, demo_server: Server, tmp_path: Path
) -> None:
    """In the document's order, since one may go on with another's session."""
    code = example.code.replace("localhost:3000", f"127.0.0.1:{demo_server.port}")
    code = code.replace("localhost:3001", demo_server.grpc_address)
    code = code.replace(".venv/bin/python", sys.executable)
    if example.language == "html":
        printed = shown_by(code, tmp_path)
    else:
        printed = printed_by(example.language, code, tmp_path)
    assert steady(printed) == steady(example.shown)


def printed_by(language: str, code: str, directory: Path) -> str:
    command = ["bash", "-c", code] if language == "console" else [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown_by(page: str, directory: Path) -> str:
    """The text of a page's `out` once its title is `done`."""
    dom = dom_of(page, directory)
    found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom
    return html.unescape(found[1])
