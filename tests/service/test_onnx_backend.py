"""A step graph is used where it gives the chunk graph's bits on this machine, and only there."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from service.artifact import Artifact
from service.manifest import Variant, describe_file
from service.onnx_backend import OnnxBackend
from tests.service.build_artifact import Spec, build_artifact

STEP = "onnx-fp32.step.onnx"


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact.load(build_artifact(tmp_path, Spec("small", 3, 2)))


def _with_step(artifact: Artifact, graph: onnx.ModelProto) -> Variant:
    onnx.save(graph, artifact.path / STEP)
    variant = artifact.variant("onnx-fp32")
    return variant.model_copy(update={"step": describe_file(artifact.path / STEP)})


def _step(artifact: Artifact, change: float = 0.0) -> onnx.ModelProto:
    """The chunk graph for one step, with lengths of ones inside; `change` is added to a bias."""
    graph = onnx.load(artifact.path / artifact.variant("onnx-fp32").file)
    inner = graph.graph
    for node in inner.node:
        node.input[:] = ["given_lengths" if n == "lengths" else n for n in node.input]
    kept = [port for port in inner.input if port.name != "lengths"]
    del inner.input[:]
    inner.input.extend(kept)
    shape = onnx.helper.make_node("Shape", ["x"], ["batch"], start=0, end=1)
    fill = numpy_helper.from_array(np.ones(1, np.int64))
    full = onnx.helper.make_node("ConstantOfShape", ["batch"], ["given_lengths"], value=fill)
    nodes = [shape, full, *inner.node]
    del inner.node[:]
    inner.node.extend(nodes)
    for tensor in inner.initializer:
        if tensor.name == "bias":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + change, "bias"))
    return graph


def _draw(artifact: Artifact) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 1, 3)).astype(np.float32)
    h, c = rng.uniform(-1, 1, (2, 4, 1, 8)).astype(np.float32)
    return x, {"h": h, "c": c}


def _runs_step(backend: OnnxBackend) -> bool:
    return backend._step is not None


def _assert_same(backend: OnnxBackend, artifact: Artifact) -> None:
    x, state = _draw(artifact)
    alone = OnnxBackend(artifact, artifact.variant("onnx-fp32"), 1)
    ones = np.ones(4, np.int64)
    (y, new), (wanted, wanted_new) = (b.run(x, state, ones) for b in (backend, alone))
    assert y.tobytes() == wanted.tobytes() and y.shape == wanted.shape
    assert all(new[n].tobytes() == wanted_new[n].tobytes() for n in state)


def test_a_step_graph_of_the_same_bits_runs_single_steps(artifact: Artifact) -> None:
    """In the shapes of the ports, as older artifacts have it; y and states are the chunk's."""
    backend = OnnxBackend(artifact, _with_step(artifact, _step(artifact)), 1)
    assert _runs_step(backend)
    _assert_same(backend, artifact)


def test_another_bit_and_the_chunk_graph_runs_all(
    artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    """One part in a million is seen when it is loaded, and said."""
    with caplog.at_level(logging.WARNING, "carousel.runtime"):
        backend = OnnxBackend(artifact, _with_step(artifact, _step(artifact, change=1e-6)), 1)
    assert not _runs_step(backend)
    assert f"{STEP} of {artifact.path} gives other bits" in caplog.text
    _assert_same(backend, artifact)
