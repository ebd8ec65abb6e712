"""A variant under ONNX Runtime's CPU provider: the chunk graph, and the step graph if any.

The step graph may be other operators than the chunk graph's, for speed. A session's answers must
not depend on how its steps were cut, so both have to give the same bits; that they do is tried on
each machine when they are loaded, and where they do not the chunk graph runs all.
"""

import logging

import numpy as np
import onnxruntime as ort

from service.artifact import Array, Artifact
from service.bound_graph import BoundGraph
from service.layout import State
from service.manifest import Port, Ports, StatePort, Variant

logger = logging.getLogger("carousel.runtime")

TRIED_BATCHES = (1, 5, 64)  # a row alone, a few, and what wide kernels take
TRIED_SCALES = (1.0, 30.0, 1e4, 1e-40)  # ordinary, saturating, extreme, denormal


class OnnxBackend:
    """Inputs x, lengths and each state's `NAME_0`; outputs y and each state's `NAME_n`."""

    engine = f"onnxruntime {ort.__version__}"

    def __init__(self, artifact: Artifact, variant: Variant, threads: int) -> None:
        ports = artifact.manifest.ports
        self._chunk = BoundGraph(artifact.path / variant.file, ports, threads)
        self._step = None
        if variant.step:
            step = BoundGraph(artifact.path / variant.step.file, ports, threads)
            if agree(self._chunk, step, ports):
                self._step = step
            else:
                logger.warning(
                    "%s of %s gives other bits than %s on this machine; the latter runs single "
                    "steps too",
                    variant.step.file,
                    artifact.path,
                    variant.file,
                )

    def run(self, x: Array, state: State, lengths: Array) -> tuple[Array, State]:
        if self._step is not None and x.shape[1] == 1:
            return self._step.run(x, state, None)
        return self._chunk.run(x, state, lengths)


def agree(chunk: BoundGraph, step: BoundGraph, ports: Ports) -> bool:
    """Whether both give the same bits for one step, on random rows of every scale."""
    rng = np.random.default_rng(0)
    for batch in TRIED_BATCHES:
        scales = rng.choice(TRIED_SCALES, batch)
        x = _draw(rng, ports.x, scales)
        state = {port.name: _draw(rng, port, scales) for port in ports.states}
        lengths = np.ones(batch, np.int64)
        try:
            y, after = chunk.run(x, state, lengths)
            other_y, other_after = step.run(x, state, None)
        except Exception:  # its exceptions share no base but Exception
            return False  # the self-test runs the chunk graph, and says what is wrong with it
        pairs = [(y, other_y), *((after[name], other_after[name]) for name in state)]
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
            return False
    return True


def _draw(rng: np.random.Generator, port: Port, scales: Array) -> Array:
    """Random rows: ids that the model knows, values in a bound, others of each row's scale."""
    free = {"B": len(scales), "T": 1}
    shape = [free[dim] if isinstance(dim, str) else dim for dim in port.shape]
    if port.dtype == "int64":
        return rng.integers(0, port.ids or 1, shape)
    values = rng.standard_normal(shape)
    if isinstance(port, StatePort) and port.bound is not None:
        values = port.bound * np.tanh(values)
    else:
        values *= scales.reshape(-1, *[1] * (len(shape) - 1))
    return values.astype(np.float32)
