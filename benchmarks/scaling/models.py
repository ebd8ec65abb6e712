"""The models that are measured: those of `benchmarks.peers`, and ten of one size to start with."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import ROOT
from benchmarks.wire.network import HIDDEN, WIDTH, write_network
from service.artifact import find_artifacts
from service.model import Model
from service.self_test import repeat

SIZES = (32, 128, 512)  # hidden; the formula is fitted to the ends and checked in the middle
STARTED = 10
BATCH = 64
CALLS = 40


@dataclass(frozen=True)
class Sized:
    """A model, and what a step of one row costs in a batch of `BATCH`, nothing else of ours."""

    hidden: int
    state_bytes: int  # of a session, as it is stored
    model_us: float


def model_of(cache: Path, hidden: int) -> Model:
    """Exported now, if it was not before."""
    (path,) = find_artifacts(write_network(cache, hidden).artifacts)
    return Model.load(path)


def ten_models(cache: Path) -> Path:
    """A directory of `STARTED` artifacts, exported now if they were not before."""
    folder = cache / f"start-{HIDDEN}"
    example = cache / "start.npy"
    for number in range(STARTED):
        name = f"lstm-{number}"
        if find_artifacts(folder) and list((folder / name).glob("*/manifest.json")):
            continue
        cache.mkdir(parents=True, exist_ok=True)
        np.save(example, np.random.default_rng(number).uniform(-1, 1, (2_000, WIDTH)))
        command = [sys.executable, "-m", "export", "benchmarks.wire.network:forecaster"]
        command += ["--init", json.dumps({"hidden": HIDDEN}), "--example", str(example)]
        command += ["--name", name, "--variants", "onnx-fp32", "--steps", "500"]
        command += ["--timing", "0", "--no-store", "--out", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


def measure_model(model: Model, hidden: int) -> Sized:
    artifact, runtime = model.artifact, model.runtime
    x = np.resize(artifact.golden().x[:, :1], (BATCH, 1, WIDTH))
    state = repeat(artifact.initial, BATCH)
    times = []
    for _ in range(CALLS):
        begun = time.process_time()
        _, state = runtime.run(x, state)
        times.append(time.process_time() - begun)
    return Sized(hidden, len(model.initial_state), median(times) / BATCH * 1e6)
