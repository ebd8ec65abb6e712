"""A variant under ONNX Runtime's CPU provider: the chunk graph, and the step graph if any."""

from pathlib import Path

import onnxruntime as ort

from service.artifact import Array, Artifact
from service.errors import ArtifactError
from service.layout import State
from service.manifest import Variant


class OnnxBackend:
    """Inputs x, lengths and each state's `NAME_0`; outputs y and each state's `NAME_n`."""

    engine = f"onnxruntime {ort.__version__}"

    def __init__(self, artifact: Artifact, variant: Variant, threads: int) -> None:
        self._states = artifact.manifest.ports.states
        self._outputs = ["y", *(port.output for port in self._states)]
        self._chunk = _open(artifact.path / variant.file, threads)
        self._step = _open(artifact.path / variant.step.file, threads) if variant.step else None

    def run(self, x: Array, state: State, lengths: Array) -> tuple[Array, State]:
        feed = {"x": x, **{port.input: state[port.name] for port in self._states}}
        if x.shape[1] == 1 and self._step is not None:
            y, *states = self._step.run(self._outputs, feed)
        else:
            y, *states = self._chunk.run(self._outputs, {**feed, "lengths": lengths})
        return y, {port.name: s for port, s in zip(self._states, states, strict=True)}


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
