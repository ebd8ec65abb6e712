"""A variant under ONNX Runtime's CPU provider: the chunk graph, and the step graph if any."""

import numpy as np
import onnxruntime as ort

from service.artifact import Array, Artifact
from service.bound_graph import BoundGraph, Output
from service.layout import State
from service.manifest import Variant


class OnnxBackend:
    """Inputs x, lengths and each state's `NAME_0`; outputs y and each state's `NAME_n`."""

    engine = f"onnxruntime {ort.__version__}"

    def __init__(self, artifact: Artifact, variant: Variant, threads: int) -> None:
        ports = artifact.manifest.ports
        self._names = [port.name for port in ports.states]
        states = [port.input for port in ports.states]
        outputs = [_output("y", ports.y.shape[2:], ports.y.dtype, over_time=True)]
        outputs += [_output(port.output, port.shape[1:], port.dtype) for port in ports.states]
        self._chunk = BoundGraph(
            artifact.path / variant.file, threads, ["x", "lengths", *states], outputs
        )
        self._step = None
        if variant.step:
            path = artifact.path / variant.step.file
            self._step = BoundGraph(path, threads, ["x", *states], outputs)

    def run(self, x: Array, state: State, lengths: Array) -> tuple[Array, State]:
        before = [state[name] for name in self._names]
        if x.shape[1] == 1 and self._step is not None:
            y, *after = self._step.run([x, *before])
        else:
            y, *after = self._chunk.run([x, lengths, *before])
        return y, dict(zip(self._names, after, strict=True))


def _output(name: str, tail: list[int | str], dtype: str, over_time: bool = False) -> Output:
    return Output(name, tuple(int(size) for size in tail), np.dtype(dtype), over_time)
