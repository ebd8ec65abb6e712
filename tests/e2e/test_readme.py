"""Every line of README that a shell can run, run as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.artifact import Artifact
from tests.e2e.conftest import ROOT, Server, start_server
from tests.e2e.documents import commands


def plain(line: str) -> dict[str, object]:
    """A reply without its version; y to what another CPU's training may change."""
    reply = json.loads(line)
    if "y" in reply:
        reply["y"] = pytest.approx(np.array(reply["y"]), abs=1.0)
    reply.pop("version", None)  # it differs with the weights
    return dict(reply)


def by_session(line: str) -> tuple[str, int]:
    reply = json.loads(line)
    return reply.get("session_id", ""), reply.get("step", -1)


@pytest.mark.needs("curl")
def test_the_curl_lines_print_what_readme_shows(demo_server: Server) -> None:
    """In README's order, against both demo models: the same replies but for the weights' digits."""
    ran = 0
    for command, shown in commands((ROOT / "README.md").read_text()):
        if "curl" not in command or "pump-8" in command:  # that is the next test's
            continue
        local = command.replace("localhost:3000", f"127.0.0.1:{demo_server.port}")
        done = subprocess.run(
            ["bash", "-c", local], capture_output=True, text=True, check=True, timeout=60
        )
        printed = [json.loads(line) for line in sorted(done.stdout.splitlines(), key=by_session)]
        for reply in printed:
            reply.pop("version", None)
        assert printed == [plain(line) for line in sorted(shown, key=by_session)], command
        ran += 1
    assert ran == 8


@pytest.mark.needs("curl")
def test_the_key_that_readme_makes_lets_its_holder_in(
    demo_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    """And nobody else: each command as it stands, in a directory where there is no key file yet."""
    found = [one for one in commands((ROOT / "README.md").read_text()) if is_of_keys(one[0])]
    (make, shown), (serve, _), *curls = found
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(command: str) -> str:
        local = command.replace(".venv/bin/python", sys.executable)
        done = subprocess.run(
            ["bash", "-c", local],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()

    environment["KEY"] = run(make)
    assert len(environment["KEY"]) == len(shown[0])
    assert serve == "CAROUSEL_API_KEYS_FILE=keys.toml make serve"
    server = start_server(
        tmp_path,
        CAROUSEL_ARTIFACTS=str(demo_artifacts["sine-cell"].path.parents[1]),
        CAROUSEL_DEFAULT_MODEL="sine-cell",
        CAROUSEL_API_KEYS_FILE=str(tmp_path / "keys.toml"),
    )
    try:
        server.wait_until_it_listens()
        assert len(curls) == 2
        for command, (line,) in curls:
            reply = json.loads(run(command.replace("localhost:3000", f"127.0.0.1:{server.port}")))
            reply.pop("version", None)
            assert reply == plain(line), command
    finally:
        server.stop()


def is_of_keys(command: str) -> bool:
    return any(part in command for part in ("service.keys", "API_KEYS_FILE", "pump-8"))


def test_every_make_target_that_readme_names_exists() -> None:
    """`make -n` knows them all."""
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"`(?:[A-Z_]+=\S+ )?make ([a-z]+)`", readme))
    assert {"serve", "test", "bench", "check", "clean"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_every_link_in_readme_leads_somewhere() -> None:
    """Files that README points to are in the checkout."""
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / Path(target)).exists(), target
