"""Models made for the purpose: seeded, not trained, exported by the real export, kept in a folder.

x is 8 wide, y too. Not being trained changes no time. A folder is of one state of what writes
artifacts (a digest of `export/`, the manifest's form and the versions of the engines), so that a
change of the graphs is measured and no old artifact is.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from benchmarks.latency.point import Model
from export.exporter import export
from export.source import load_source
from service.artifact import Artifact, find_artifacts
from service.manifest import VariantName

ROOT = Path(__file__).parents[2]
WIDTH = 8  # features of x and of y
TYPICAL_HIDDEN = 128  # of the models that people serve; of its size are the GRU and the stack
EXAMPLE_STEPS = PROOF_STEPS = 500  # here is measured what a step takes; what it gives is proven
ISOLATION_TRIALS = 4  # elsewhere, for longer
VARIANTS: tuple[VariantName, ...] = ("onnx-fp32", "onnx-int8-rowwise")
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}
WRITERS = ("export/**/*.py", "service/manifest.py", "service/pipeline.py")
ENGINES = ("torch", "onnx", "onnxruntime", "numpy")

State = Tensor | tuple[Tensor, Tensor]


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


def make(
    cache: Path,
    size: Size,
    variants: Sequence[VariantName] = VARIANTS,
    progress: Callable[[str], None] = lambda what: None,
) -> Artifact:
    """The artifact `cache/DIGEST/NAME/VERSION`, exported unless it is there with all `variants`.

    Raises:
        ExportError: a variant drifts, or cannot be written here; the message says which.
    """
    folder = cache.absolute() / digest()
    for path in find_artifacts(folder):
        artifact = Artifact.load(path)
        if path.parent.name == size.name and set(variants) <= set(artifact.manifest.variants):
            return artifact
    with tempfile.TemporaryDirectory() as scratch, threadpool_limits(1):
        example, weights = Path(scratch) / "example.npy", Path(scratch) / "weights.safetensors"
        x = np.random.default_rng(0).uniform(-1, 1, (EXAMPLE_STEPS, WIDTH)).astype(np.float32)
        np.save(example, x)
        arguments = {"kind": size.kind, "hidden": size.hidden, "layers": size.layers}
        save_file(network(size.kind, size.hidden, size.layers).state_dict(), weights)
        source = load_source(f"{__name__}:network", weights, example, arguments=arguments)
        return export(
            source,
            size.name,
            folder,
            variants=variants,
            steps=PROOF_STEPS,
            isolation_trials=ISOLATION_TRIALS,
            progress=progress,
        ).artifact


def digest() -> str:
    """Of the code that writes artifacts, and of the versions that it writes with."""
    found = hashlib.sha256(Path(__file__).read_bytes())
    for pattern in WRITERS:
        for path in sorted(ROOT.glob(pattern)):
            found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    for package in ENGINES:
        found.update(f"{package} {version(package)}".encode())
    return found.hexdigest()[:12]
