"""The folder that a training leaves: ``runs/NAME/``, whole or not at all.

- It is written under another name beside its target, and renamed when everything is in it.
- A run of before stays in place until that moment, when two renames exchange the two.
- A killed training leaves at most a folder called ``.NAME.partial-*``, which nothing reads.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from models.errors import RunError
from models.scores import Score
from models.task import Task

WEIGHTS = "weights.safetensors"
HOLDOUT = "holdout.npy"
PIPELINE = "pipeline.json"
REPORT = "report.json"


@dataclass(frozen=True)
class Report:
    """What is to be known of a training afterwards: the content of ``report.json``.

    Args:
        name: of the model.
        seed: of weights, crops and dropout.
        parameters: part of the model -> {"weights": ..., "biases": ...}.
        scores: on held-out time, each next to the naive forecasts.
        training_s: seconds of training, without scoring.
        epochs: how many were trained.
        best_epoch: the one whose weights were kept, counted from 1.
        best_loss: its validation loss.
        settings: the training settings, by name.
        versions: of Python and of the packages that had a part in the numbers.
        window: the steps that the model was trained to take at a time; None: any number.
    """

    name: str
    seed: int
    parameters: dict[str, dict[str, int]]
    scores: list[Score]
    training_s: float
    epochs: int
    best_epoch: int
    best_loss: float
    settings: dict[str, Any]
    versions: dict[str, str]
    window: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, run: Path) -> "Report | None":
        """The report of a finished run, or None where there is no such run."""
        file = run / REPORT
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        return cls(**{**content, "scores": [Score(**score) for score in content["scores"]]})


@contextmanager
def new_run(target: Path) -> Iterator[Path]:
    """A folder to write a run into, which becomes ``target`` when the block ends well.

    Raises:
        RunError: ``target`` is there and is no run, so it is not replaced. Choose another.
    """
    if target.exists() and not (target / REPORT).is_file():
        raise RunError(
            f"{target} exists and holds no {REPORT}, so it is no run; choose another --out"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        folder.chmod(0o755)  # mkdtemp keeps its folder to one user; a run is nothing private
        yield folder
        _replace(target, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already if all went well


def _replace(target: Path, folder: Path) -> None:
    """Rename ``folder`` to ``target``, moving a run of before out of the way first."""
    if target.exists():
        old = folder.with_name(f"{folder.name}.old")
        os.replace(target, old)
        os.replace(folder, target)
        shutil.rmtree(old)
    else:
        os.replace(folder, target)


def write_run(folder: Path, task: Task, model: nn.Module, report: Report) -> None:
    """Write all but the weights, which the training loop has already put there."""
    np.save(folder / HOLDOUT, task.holdout)
    _write_json(folder / PIPELINE, task.finished_pipeline(model).to_json())
    _write_json(folder / REPORT, report.to_json())


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(
        json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
