"""A runtime computes `run(x, state, lengths) -> (y, state')` for one variant of an artifact.

Rules
- State goes in and comes out; a runtime keeps none, so any number of sessions may share it.
- A row gets what it would get alone, and a sequence what it would get in any other chunks. A
  variant that cannot promise this (`isolated: false` in the manifest: its arithmetic looks at
  the whole batch or chunk) runs one row and one step at a time.
- Rows of y past a row's length are zero, and no result is -0.0: the same bits in any chunks means
  one zero.

How it works: `run` checks the arrays, then gives them to the variant's backend (ONNX Runtime or
torch): at once if the variant is isolated, else row by row and step by step.
"""

from functools import lru_cache
from typing import Protocol

import numpy as np

from service.artifact import Array, Artifact
from service.errors import ShapeError
from service.layout import State
from service.manifest import Port, Ports
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
        """As `Runtime.run`, on checked arrays, all rows in one call; the results are new arrays."""
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
        self._shapes = _Shapes(self.ports)
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
        self._shapes.check(x, state)
        batch, steps = x.shape[:2]
        if lengths is None:
            lengths = _all_steps(batch, steps)
        elif lengths.shape != (batch,) or lengths.min() < 1 or lengths.max() > steps:
            raise ShapeError(
                f"`lengths` is {lengths.tolist()}, expected {batch} lengths of 1 to {steps} steps"
            )
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


class _Shapes:
    """What arrays must look like. Checked at each call, so it is read from the manifest once."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._names = {port.name for port in ports.states}
        self._x = _tail_and_dtype(ports.x, 2)
        self._states = [(port.name, *_tail_and_dtype(port, 1)) for port in ports.states]

    def check(self, x: Array, state: State) -> None:
        tail, dtype = self._x
        shape = x.shape
        if shape[2:] != tail or len(shape) != len(tail) + 2 or 0 in shape:
            wanted = ", ".join(["batch", "time", *map(str, tail)])
            raise ShapeError(f"`x` has shape {shape}, expected ({wanted}) from manifest port `x`")
        if x.dtype != dtype:
            raise ShapeError(f"`x` is {x.dtype}, expected {dtype}")
        if state.keys() != self._names:
            names = [port.name for port in self._ports.states]
            raise ShapeError(f"`state` has {sorted(state)}, expected {names}")
        batch = shape[:1]
        for name, tail, dtype in self._states:
            value = state[name]
            if value.shape != batch + tail or value.dtype != dtype:
                raise ShapeError(
                    f"state `{name}` is {value.dtype} {value.shape}, expected {dtype} "
                    f"{batch + tail}"
                )


def _tail_and_dtype(port: Port, free: int) -> tuple[tuple[int, ...], np.dtype]:
    """The shape past its first `free` axes, and the dtype."""
    return tuple(int(size) for size in port.shape[free:]), np.dtype(port.dtype)


@lru_cache(maxsize=256)
def _all_steps(batch: int, steps: int) -> Array:
    """Lengths of rows that are all of the chunk's; not to be written to."""
    lengths = np.full(batch, steps, np.int64)
    lengths.flags.writeable = False
    return lengths


def _open_backend(artifact: Artifact, variant: str, threads: int) -> Backend:
    entry = artifact.variant(variant)
    if variant == "torch-export":
        return TorchExportBackend(artifact, entry, threads)
    if variant.startswith("torchscript"):
        return TorchScriptBackend(artifact, entry, threads)
    return OnnxBackend(artifact, entry, threads)
