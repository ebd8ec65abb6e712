"""An environment for each peer, of the pinned versions in its requirements.txt.

It is made again when that file has changed. What cannot be installed here is an error with pip's
words, which the report shows in place of figures.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.contestants import APPS

STAMP = "installed"  # a file in the environment: the hash of what is in it


class VenvError(Exception):
    """A peer's packages could not be installed; the message has pip's last words."""


def make_venv(cache: Path, app: str) -> Path:
    """The folder of the environment's commands, `bin`."""
    requirements = APPS / app / "requirements.txt"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest() + sys.version
    venv = cache / app
    stamp = venv / STAMP
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(venv, ignore_errors=True)
        _run(app, [sys.executable, "-m", "venv", "--without-pip", str(venv)])
        pip = [sys.executable, "-m", "pip", "--python", str(venv), "install", "--quiet"]
        _run(app, [*pip, "--requirement", str(requirements)])
        stamp.write_text(wanted)
    return venv / "bin"


def versions(bin_folder: Path, packages: list[str]) -> dict[str, str]:
    """Package -> its version in that environment; those that are not there are left out."""
    code = (
        "import sys, importlib.metadata as m\n"
        "for d in m.distributions():\n"
        "    if d.name.lower() in sys.argv[1:]: print(d.name.lower(), d.version)"
    )
    command = [str(bin_folder / "python"), "-c", code, *packages]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(line.split() for line in done.stdout.splitlines())


def _run(app: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr or done.stdout).strip()[-600:]
        raise VenvError(f"{app} cannot be installed here: {words}")
