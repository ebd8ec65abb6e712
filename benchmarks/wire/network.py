"""A model to be asked: one set of weights, in the forms that servers take.

A one-layer nn.LSTM and a linear head (`benchmarks.stock`): x (T, 8) -> y (T, 8). It is not trained,
as weights change no time; y has eight numbers, so that no two states give the same by chance.

    artifact/NAME/VERSION  for Carousel, by `python -m export`
    stock.onnx             for the peers: one LSTM node, by torch.onnx.export (`benchmarks.stock`)
    weights.pt             for those that run torch
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from safetensors.torch import save_file

from benchmarks import ROOT
from benchmarks.latency.made import digest
from benchmarks.stock import forecaster, write_stock

WIDTH = 8  # features of x and of y
HIDDEN = 128
NAME = "lstm"
EXAMPLE_STEPS = PROOF_STEPS = 500  # every way's y is compared with the plain loop's besides

Array = np.ndarray
State = tuple[Array, Array]  # h, c: (1, B, H)


@dataclass(frozen=True)
class Network:
    """The files of one model."""

    folder: Path
    hidden: int

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifact"

    @property
    def stock(self) -> Path:
        return self.folder / "stock.onnx"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.pt"


def write_network(folder: Path, hidden: int) -> Network:
    """All forms of the model, under `folder`; what is there already is kept.

    Unless what writes artifacts has changed since: then they are written anew.

    Raises:
        subprocess.CalledProcessError: the export failed; it has said why.
    """
    network = Network(folder.absolute() / digest() / f"{NAME}-{hidden}", hidden)
    if not list(network.artifacts.glob("*/*/manifest.json")):
        network.folder.mkdir(parents=True, exist_ok=True)
        module = forecaster(WIDTH, hidden, WIDTH)
        torch.save(module.state_dict(), network.weights)
        write_stock(module, module.lstm, network.stock)
        _write_artifact(network)
    return network


def _write_artifact(network: Network) -> None:
    example, weights = network.folder / "example.npy", network.folder / "weights.safetensors"
    np.save(example, np.random.default_rng(0).uniform(-1, 1, (EXAMPLE_STEPS, WIDTH)))
    save_file(torch.load(network.weights, weights_only=True), weights)
    command = [
        sys.executable,
        *("-m", "export", "benchmarks.stock:forecaster"),
        *("--init", f'{{"hidden": {network.hidden}}}'),
        *("--weights", str(weights), "--example", str(example), "--name", NAME),
        *("--variants", "onnx-fp32", "--steps", str(PROOF_STEPS), "--timing", "0", "--no-store"),
        *("--out", str(network.artifacts)),
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


class Loop:
    """The plain loop that every y is compared with: the stock graph, one row at a time."""

    def __init__(self, network: Network) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(network.stock), options)
        self._hidden = network.hidden

    @property
    def width(self) -> int:
        return WIDTH

    def start(self) -> State:
        """The state of a session that has not begun."""
        zeros = np.zeros((1, 1, self._hidden), np.float32)
        return zeros, zeros

    def step(self, x: Array, state: State) -> tuple[Array, State]:
        """One row x (I,) of one session -> y (O,) and the new state; `state` is not changed."""
        h, c = state
        rows = np.asarray(x, np.float32)[np.newaxis, np.newaxis]
        y, h, c = self._session.run(None, {"x": rows, "h": h, "c": c})
        return y[0, 0], (h, c)
