"""Every model of the zoo, trained for a moment and exported for real: what the laws are held to.

As a command, one model: `python -m tests.laws.zoo_runs NAME RUNS OUT`.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from rich.console import Console

from models.scores import Score
from models.train import train
from models.zoo import ZOO
from tests.conftest import ROOT, export_command

EPOCHS, BATCHES = 3, 20  # some seconds a model: weights that are neither random nor good


def main(name: str, runs: Path, out: Path) -> None:
    """Train and export one model; the gate is the real one, the naive forecasts may be better."""
    entry = ZOO[name]
    short = replace(entry, settings=replace(entry.settings, epochs=EPOCHS, batches=BATCHES))
    with patch.object(Score, "failures", return_value=[]):
        train(short, runs / name, 0, Console(file=sys.stderr))
    subprocess.run([*export_command(runs / name, out), "--no-store"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
