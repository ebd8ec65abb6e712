"""A graph under ONNX Runtime's CPU provider, run on arrays that are bound to it.

`InferenceSession.run` makes a value of ONNX Runtime's own of each array, checks it, and copies each
result into a new array: half of the time of a step at batch 1. So:

- Small arrays are copied into and out of some that stay bound, a set for each thread and shape. A
  call overwrites all that it reads, so nothing of one call is seen by another.
- Large ones are bound as they are given, and the results are written into new arrays.
- A graph may declare other shapes than the arrays have, of the same elements, batch first (that of
  one step does): an array is bound in the shape that is declared, which costs nothing.

ONNX Runtime's Where turns -0.0 into 0.0, and only graphs over many steps have one. The same bits in
any chunks means one zero, so 0 is added to each result: of small ones by the copy that is made
anyway.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from service.errors import ArtifactError
from service.layout import State
from service.manifest import Port, Ports

Array = np.ndarray

LARGE_BYTES = 128 << 10  # of one array: to copy as much takes as long as to bind it, some 3 us
KEPT_SETS = 16  # of a thread and graph, the last made; each is LARGE_BYTES an array at most


class BoundGraph:
    """One ONNX file of an artifact, loaded. Any number of threads may run it."""

    def __init__(self, path: Path, ports: Ports, threads: int) -> None:
        """
        Raises:
            ArtifactError: ONNX Runtime cannot load it. Export the model again.
        """
        self._ports = ports
        self._session = _open(path, threads)
        declared = [*self._session.get_inputs(), *self._session.get_outputs()]
        self._tails = {port.name: _fixed(port.shape[1:]) for port in declared}
        self._kept = _KeptSets()

    def run(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State]:
        """As `Runtime.run`, on checked arrays; a graph of one step takes no lengths."""
        found = self._kept.sets.get(x.shape[:2]) or self._find_set(x, state)
        if found is None:
            return self._run_large(x, state, lengths)
        found.x[...] = x
        if lengths is not None:
            found.lengths[...] = lengths
        for name, value in found.before:
            value[...] = state[name]
        self._session.run_with_iobinding(found.binding)
        return found.y + found.zero, {name: value + zero for name, value, zero in found.after}

    def _find_set(self, x: Array, state: State) -> "_Set | None":
        """Make bound arrays of these shapes; None: one of them would be large."""
        batch, steps = x.shape[:2]
        y, after = self._new_results(batch, steps)
        if any(a.nbytes > LARGE_BYTES for a in (x, y, *after.values())):
            return None
        mine = np.empty(x.shape, x.dtype)
        lengths = np.empty(batch, np.int64)
        before = {name: np.empty(value.shape, value.dtype) for name, value in state.items()}
        made = _Set(
            mine,
            lengths,
            list(before.items()),
            y,
            np.zeros((), y.dtype),
            [(name, value, np.zeros((), value.dtype)) for name, value in after.items()],
            self._bind(mine, before, lengths, y, after),
        )
        kept = self._kept.sets
        kept[batch, steps] = made
        if len(kept) > KEPT_SETS:
            del kept[next(iter(kept))]
        return made

    def _run_large(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State]:
        y, after = self._new_results(*x.shape[:2])
        given = {name: np.ascontiguousarray(value) for name, value in state.items()}
        counts = None if lengths is None else np.ascontiguousarray(lengths, np.int64)
        binding = self._bind(np.ascontiguousarray(x), given, counts, y, after)
        self._session.run_with_iobinding(binding)
        for value in (y, *after.values()):
            np.add(value, 0, out=value)
        return y, after

    def _new_results(self, batch: int, steps: int) -> tuple[Array, State]:
        def new(port: Port) -> Array:
            free = {"B": batch, "T": steps}
            shape = [free[dim] if isinstance(dim, str) else dim for dim in port.shape]
            return np.empty(shape, port.dtype)

        return new(self._ports.y), {port.name: new(port) for port in self._ports.states}

    def _bind(self, x: Array, before: State, lengths: Array | None, y: Array, after: State) -> Any:
        binding = self._session.io_binding()
        binding.bind_cpu_input("x", self._as_declared("x", x))
        if "lengths" in self._tails:
            binding.bind_cpu_input("lengths", lengths)
        for port in self._ports.states:
            given = self._as_declared(port.input, before[port.name])
            binding.bind_cpu_input(port.input, given)
        outputs = {"y": y} | {port.output: after[port.name] for port in self._ports.states}
        for name, value in outputs.items():
            result = ort.OrtValue.ortvalue_from_numpy(self._as_declared(name, value))
            binding.bind_ortvalue_output(name, result)
        return binding

    def _as_declared(self, name: str, array: Array) -> Array:
        """The array's own memory in the shape that the graph declares."""
        tail = self._tails[name]
        return array if tail is None else array.reshape(len(array), *tail)


@dataclass(frozen=True)
class _Set:
    """Arrays of one shape that stay bound; a `zero` is one of its array's dtype."""

    x: Array
    lengths: Array
    before: Sequence[tuple[str, Array]]
    y: Array
    zero: Array
    after: Sequence[tuple[str, Array, Array]]
    binding: Any  # ort.IOBinding


class _KeptSets(threading.local):
    """This thread's sets, (B, T) -> set."""

    def __init__(self) -> None:
        self.sets: dict[tuple[int, ...], _Set] = {}


def _fixed(tail: Sequence[int | str]) -> tuple[int, ...] | None:
    """A shape whose every size is a number; None: one is free, and is as the array has it."""
    sizes = tuple(size for size in tail if isinstance(size, int))
    return sizes if len(sizes) == len(tail) else None


def _open(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads starve torch in the same process, and other workers on the same cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but Exception
        raise ArtifactError(f"ONNX Runtime cannot load {path}: {error}") from error
