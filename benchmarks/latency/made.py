"""Models made for the purpose: seeded, not trained, exported by the real export, kept in a folder.

x is 8 wide, y too. Not being trained changes no time. A folder is of one state of the code that
wrote it (a digest of `export/` and `service/`, and the versions of the engines), so that a change
of the graphs is measured and no old artifact is.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.latency.point import Model
from service.artifact import Artifact, find_artifacts

ROOT = Path(__file__).parents[2]
WIDTH = 8  # features of x and of y
EXAMPLE_STEPS = 500
PROOF_STEPS = 500  # the arithmetic of a step is proven elsewhere; this is about its time
VARIANTS = ("onnx-fp32", "onnx-int8-rowwise")
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}
SOURCES = ("export", "service")
ENGINES = ("torch", "onnx", "onnxruntime", "numpy")

State = Tensor | tuple[Tensor, Tensor]


class MakingError(Exception):
    """The export of a made model failed; the message has what it said."""


@dataclass(frozen=True)
class Size:
    """A recurrent core and a linear head."""

    kind: str  # of KINDS
    hidden: int
    layers: int = 1

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.hidden}" + (f"-x{self.layers}" if self.layers > 1 else "")

    @property
    def model(self) -> Model:
        return Model(self.name, self.kind, WIDTH, self.hidden, self.layers, is_made=True)


class Network(nn.Module):
    """X (B, T, 8), (h, c) or h, each (L, B, H) -> Y (B, T, 8) and the new state."""

    def __init__(self, kind: str, hidden: int, layers: int) -> None:
        super().__init__()
        self.core = KINDS[kind](WIDTH, hidden, num_layers=layers, batch_first=True)
        self.head = nn.Linear(hidden, WIDTH)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        y, state = self.core(x, state)
        return self.head(y), state


def network(kind: str, hidden: int, layers: int) -> Network:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network(kind, hidden, layers).eval()


def make(cache: Path, size: Size, variants: Sequence[str] = VARIANTS) -> Artifact:
    """The artifact `cache/DIGEST/NAME/VERSION`, exported unless it is there with all `variants`.

    Raises:
        MakingError: the export failed, and says why.
    """
    folder = cache.absolute() / digest()
    for path in find_artifacts(folder):
        artifact = Artifact.load(path)
        if path.parent.name == size.name and set(variants) <= set(artifact.manifest.variants):
            return artifact
    shutil.rmtree(folder / size.name, ignore_errors=True)
    return _export(folder, size, variants)


def _export(folder: Path, size: Size, variants: Sequence[str]) -> Artifact:
    made_of = folder / f".{size.name}"
    made_of.mkdir(parents=True, exist_ok=True)
    example, weights = made_of / "example.npy", made_of / "weights.safetensors"
    x = np.random.default_rng(0).uniform(-1, 1, (EXAMPLE_STEPS, WIDTH)).astype(np.float32)
    np.save(example, x)
    save_file(network(size.kind, size.hidden, size.layers).state_dict(), weights)
    init = f'{{"kind": "{size.kind}", "hidden": {size.hidden}, "layers": {size.layers}}}'
    command = [
        sys.executable,
        *("-m", "export", "benchmarks.latency.made:network", "--init", init),
        *("--weights", str(weights), "--example", str(example), "--name", size.name),
        *("--variants", ",".join(variants), "--steps", str(PROOF_STEPS)),
        *("--timing", "0", "--no-store", "--out", str(folder)),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    shutil.rmtree(made_of)
    if done.returncode:
        raise MakingError(f"the export of {size.name} failed: {done.stderr.strip()[-500:]}")
    (path,) = (p for p in find_artifacts(folder) if p.parent.name == size.name)
    return Artifact.load(path)


def digest() -> str:
    """Of the code that writes artifacts, and of what runs them."""
    found = hashlib.sha256()
    for source in SOURCES:
        for path in sorted((ROOT / source).rglob("*.py")):
            found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    for package in ENGINES:
        found.update(f"{package} {version(package)}".encode())
    return found.hexdigest()[:12]
