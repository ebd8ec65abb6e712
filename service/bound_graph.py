"""A graph under ONNX Runtime's CPU provider, run on arrays that are bound to it.

`InferenceSession.run` makes a value of ONNX Runtime's own of each array, checks it, and copies each
result into a new array: half of the time of a step at batch 1. So:

- Small arrays are copied into and out of some that stay bound, a set for each thread and shape. A
  call overwrites all that it reads, so nothing of one call is seen by another.
- Large ones are bound as they are given, and the results are written into new arrays.

ONNX Runtime's Where turns -0.0 into 0.0, and only graphs over many steps have one. The same bits in
any chunks means one zero, so 0 is added to each result: of small ones by the copy that is made
anyway.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from service.errors import ArtifactError

Array = np.ndarray

LARGE_BYTES = 32 << 10  # of one array: to copy as much takes as long as to bind it, some 2 us
KEPT_SETS = 16  # of a thread and graph, the last used; each is 32 KiB an array at most


@dataclass(frozen=True)
class Output:
    """What a graph gives: (B, T, ...) or, of a state, (B, ...)."""

    name: str
    tail: tuple[int, ...]  # the shape, without batch and time
    dtype: np.dtype
    over_time: bool

    def shape(self, batch: int, steps: int) -> tuple[int, ...]:
        return (batch, steps, *self.tail) if self.over_time else (batch, *self.tail)


class BoundGraph:
    """One ONNX file, loaded. Any number of threads may run it."""

    def __init__(
        self, path: Path, threads: int, inputs: Sequence[str], outputs: Sequence[Output]
    ) -> None:
        """
        Args:
            inputs: the names of what `run` is given; the first is x (B, T, ...).
        Raises:
            ArtifactError: ONNX Runtime cannot load it. Export the model again.
        """
        self._session = _open(path, threads)
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._kept = _KeptSets()

    def run(self, given: Sequence[Array]) -> list[Array]:
        """Run it once on arrays of the shapes and dtypes that it declares; -> its outputs, new."""
        batch, steps = given[0].shape[:2]
        kept = self._kept.sets
        found = kept.get((batch, steps))
        if found is None:
            found = self._make_set(given, batch, steps)
            if found is None:
                return self._run_large(given, batch, steps)
            kept[batch, steps] = found
            if len(kept) > KEPT_SETS:
                kept.popitem(last=False)
        else:
            kept.move_to_end((batch, steps))
        for mine, value in zip(found.inputs, given, strict=True):
            mine[...] = value
        self._session.run_with_iobinding(found.binding)
        return [np.add(value, zero) for value, zero in zip(found.outputs, found.zeros, strict=True)]

    def _make_set(self, given: Sequence[Array], batch: int, steps: int) -> "_Set | None":
        """Bound arrays of these shapes; None: one of them would be large."""
        if any(value.nbytes > LARGE_BYTES for value in given):
            return None
        outputs = self._new_outputs(batch, steps)
        if any(value.nbytes > LARGE_BYTES for value in outputs):
            return None
        inputs = [np.empty(value.shape, value.dtype) for value in given]
        zeros = [np.zeros((), value.dtype) for value in outputs]
        return _Set(inputs, outputs, zeros, self._bind(inputs, outputs))

    def _run_large(self, given: Sequence[Array], batch: int, steps: int) -> list[Array]:
        outputs = self._new_outputs(batch, steps)
        inputs = [np.ascontiguousarray(value) for value in given]
        self._session.run_with_iobinding(self._bind(inputs, outputs))
        return [np.add(value, 0, out=value) for value in outputs]

    def _new_outputs(self, batch: int, steps: int) -> list[Array]:
        return [np.empty(o.shape(batch, steps), o.dtype) for o in self._outputs]

    def _bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Any:
        binding = self._session.io_binding()
        for name, value in zip(self._inputs, inputs, strict=True):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
        for output, value in zip(self._outputs, outputs, strict=True):
            binding.bind_ortvalue_output(output.name, ort.OrtValue.ortvalue_from_numpy(value))
        return binding


@dataclass(frozen=True)
class _Set:
    """Arrays of one shape that stay bound."""

    inputs: Sequence[Array]
    outputs: Sequence[Array]
    zeros: Sequence[Array]  # of the outputs' dtypes
    binding: Any  # ort.IOBinding


class _KeptSets(threading.local):
    """This thread's sets, (B, T) -> set, the last used at the end."""

    def __init__(self) -> None:
        self.sets: OrderedDict[tuple[int, int], _Set] = OrderedDict()


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
