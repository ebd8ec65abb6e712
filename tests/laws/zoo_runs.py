"""Every model of the zoo, trained for a moment and exported for real: what the laws are held to.

As a command, `python -m tests.laws.zoo_runs RUNS OUT`: one process, as most of a process's time
goes into importing torch. tests/conftest.py runs `python -m models.train` and `python -m export`.
"""

import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from rich.console import Console

from export.__main__ import main as export
from models.scores import Score
from models.train import train
from models.zoo import ZOO
from tests.conftest import export_arguments

EPOCHS, BATCHES = 3, 20  # some seconds a model: weights that are neither random nor good
QUICK = ("--steps", "2000", "--timing", "0")  # of the gate; the laws measure for themselves


def main(runs: Path, out: Path) -> None:
    """Train and export the models; the gate is the real one, the naive forecasts may be better."""
    for name, entry in ZOO.items():
        short = replace(entry, settings=replace(entry.settings, epochs=EPOCHS, batches=BATCHES))
        with patch.object(Score, "failures", return_value=[]):
            train(short, runs / name, 0, Console(file=sys.stderr))
        if status := export([*export_arguments(runs / name, out), *QUICK, "--no-store"]):
            sys.exit(f"{name}: the export ended with status {status}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
