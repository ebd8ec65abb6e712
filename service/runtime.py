"""A runtime computes `run(x, state, lengths) -> (y, state')` for one variant of an artifact.

Rules
- State goes in and comes out; a runtime keeps none, so any number of sessions may share it.
- A row gets what it would get alone, and a sequence what it would get in any other chunks. A
  variant that cannot promise this (`isolated: false` in the manifest: its arithmetic looks at
  the whole batch or chunk) runs one row and one step at a time.
- Rows of y past a row's length are zero.

How it works: `run` checks the arrays, then gives them to the variant's backend (ONNX Runtime or
torch): at once if the variant is isolated, else row by row and step by step.
"""

from typing import Protocol

import numpy as np

from service.artifact import Array, Artifact
from service.errors import ShapeError
from service.layout import State
from service.onnx_backend import OnnxBackend
from service.torch_export_backend import TorchExportBackend
from service.torchscript_backend import TorchScriptBackend


class Backend(Protocol):
    """A loaded model file."""

    @property
    def engine(self) -> str:
        """What runs it, with its version."""
        ...

    def run(self, x: Array, state: State, lengths: Array) -> tuple[Array, State]:
        """As `Runtime.run`, on checked arrays, all rows in one call."""
        ...


class Runtime:
    """One variant of an artifact, loaded."""

    def __init__(self, artifact: Artifact, variant: str, threads: int = 1) -> None:
        """Load it; torch is imported for a variant of torch only.

        Raises:
            ArtifactError: no such variant, or its engine cannot load the file.
        """
        entry = artifact.variant(variant)
        self.ports = artifact.manifest.ports
        self.variant = variant
        self.isolated = entry.isolated
        self._backend = _open_backend(artifact, variant, threads)

    @property
    def engine(self) -> str:
        """What runs it, with its version: onnxruntime 1.32.0."""
        return self._backend.engine

    def run(self, x: Array, state: State, lengths: Array | None = None) -> tuple[Array, State]:
        """Advance each row by its chunk.

        Args:
            x: (B, T, ...) of port `x`'s dtype, in the model's units; rows are padded on the right.
            state: name -> (B, ...) array, as the previous chunk left it. Not changed.
            lengths: (B,) int64, 1..T, the steps of each row that count; None: all T.
        Returns:
            y (B, T, ...) and the new state. Rows of y past a row's length are zero.
        Raises:
            ShapeError: an array is not what the manifest says. Send what it says.
        """
        batch, steps = self._check(x, state)
        if lengths is None:
            lengths = np.full(batch, steps, np.int64)
        elif lengths.shape != (batch,) or lengths.min() < 1 or lengths.max() > steps:
            raise ShapeError(
                f"`lengths` is {lengths.tolist()}, expected {batch} lengths of 1 to {steps} steps"
            )
        y, new = self._run(x, state, lengths)
        # ONNX Runtime's Where turns -0.0 into 0.0, and only graphs over many steps have one: the
        # same bits in any chunks means one zero.
        return y + 0, {name: value + 0 for name, value in new.items()}

    def _run(self, x: Array, state: State, lengths: Array) -> tuple[Array, State]:
        if self.isolated:
            return self._backend.run(x, state, lengths)
        return self._run_apart(x, state, lengths)

    def _run_apart(self, x: Array, state: State, lengths: Array) -> tuple[Array, State]:
        one = np.ones(1, np.int64)
        rows: list[Array] = []
        finals: list[State] = []
        for b, length in enumerate(lengths):
            now = {name: value[b : b + 1] for name, value in state.items()}
            ys = []
            for t in range(length):
                y, now = self._backend.run(x[b : b + 1, t : t + 1], now, one)
                ys.append(y[0])
            row = np.concatenate(ys)
            padding = [(0, x.shape[1] - length)] + [(0, 0)] * (row.ndim - 1)
            rows.append(np.pad(row, padding))
            finals.append(now)
        return np.stack(rows), {n: np.concatenate([f[n] for f in finals]) for n in state}

    def _check(self, x: Array, state: State) -> tuple[int, int]:
        tail = tuple(self.ports.x.shape[2:])
        if x.ndim != len(tail) + 2 or x.shape[2:] != tail or 0 in x.shape:
            wanted = ", ".join(["batch", "time", *map(str, tail)])
            raise ShapeError(f"`x` has shape {x.shape}, expected ({wanted}) from manifest port `x`")
        if x.dtype != self.ports.x.dtype:
            raise ShapeError(f"`x` is {x.dtype}, expected {self.ports.x.dtype}")
        if set(state) != {port.name for port in self.ports.states}:
            names = [port.name for port in self.ports.states]
            raise ShapeError(f"`state` has {sorted(state)}, expected {names}")
        for port in self.ports.states:
            shape = (x.shape[0], *port.shape[1:])
            if state[port.name].shape != shape or state[port.name].dtype != port.dtype:
                raise ShapeError(
                    f"state `{port.name}` is {state[port.name].dtype} "
                    f"{state[port.name].shape}, expected {port.dtype} {shape}"
                )
        return x.shape[0], x.shape[1]


def _open_backend(artifact: Artifact, variant: str, threads: int) -> Backend:
    entry = artifact.variant(variant)
    if variant == "torch-export":
        return TorchExportBackend(artifact, entry, threads)
    if variant.startswith("torchscript"):
        return TorchScriptBackend(artifact, entry, threads)
    return OnnxBackend(artifact, entry, threads)
