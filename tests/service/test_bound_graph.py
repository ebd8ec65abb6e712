"""A graph runs on arrays that stay bound, and no call sees anything of another."""

import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from service.artifact import Artifact
from service.bound_graph import KEPT_SETS, LARGE_BYTES, BoundGraph
from service.layout import State
from tests.service.build_artifact import Spec, build_artifact

Array = np.ndarray
HIDDEN = 8
LARGE_BATCH = LARGE_BYTES // (4 * HIDDEN) + 1  # whose states are too large to be copied


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("bound")
    return Artifact.load(build_artifact(folder, Spec("small", 3, 2, HIDDEN)))


@pytest.fixture
def graph(artifact: Artifact) -> BoundGraph:
    return BoundGraph(_file(artifact), artifact.manifest.ports, 1)


def _file(artifact: Artifact) -> Path:
    return artifact.path / artifact.variant("onnx-fp32").file


def _draw(batch: int, steps: int, seed: int = 0) -> tuple[Array, State, Array]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, steps, 3)).astype(np.float32)
    h, c = rng.uniform(-1, 1, (2, batch, 1, HIDDEN)).astype(np.float32)
    return x, {"h": h, "c": c}, rng.integers(1, steps + 1, batch)


def _plain(artifact: Artifact, x: Array, state: State, lengths: Array) -> list[Array]:
    session = ort.InferenceSession(str(_file(artifact)), providers=["CPUExecutionProvider"])
    feed = {"x": x, "lengths": lengths, "h_0": state["h"], "c_0": state["c"]}
    return [value + 0 for value in session.run(["y", "h_n", "c_n"], feed)]


def _bits(y: Array, state: State) -> list[bytes]:
    return [y.tobytes(), state["h"].tobytes(), state["c"].tobytes()]


@pytest.mark.parametrize("batch", [1, 5, LARGE_BATCH])
@pytest.mark.parametrize("steps", [1, 4])
def test_it_gives_what_a_session_gives(
    batch: int, steps: int, graph: BoundGraph, artifact: Artifact
) -> None:
    """Bit for bit, whether its arrays are copied or bound as they are; twice, as sets are kept."""
    for seed in (0, 1):
        given = _draw(batch, steps, seed)
        wanted = [value.tobytes() for value in _plain(artifact, *given)]
        assert _bits(*graph.run(*given)) == wanted


def test_results_are_new_and_what_is_given_stays(graph: BoundGraph) -> None:
    """A later call of the same shape changes neither."""
    for batch in (2, LARGE_BATCH):
        x, state, lengths = _draw(batch, 2)
        before = _bits(x, state)
        result = graph.run(x, state, lengths)
        found = _bits(*result)
        graph.run(*_draw(batch, 2, seed=1))
        assert _bits(*result) == found and _bits(x, state) == before


def test_any_strides_will_do(graph: BoundGraph) -> None:
    """Every second row of a larger array, and one that cannot be written to."""
    for batch in (3, LARGE_BATCH):
        x, state, lengths = _draw(2 * batch, 2)
        x.flags.writeable = False
        every_second = {name: value[::2] for name, value in state.items()}
        packed = {name: value.copy() for name, value in every_second.items()}
        found = graph.run(x[::2], every_second, lengths[::2])
        assert _bits(*found) == _bits(*graph.run(x[::2].copy(), packed, lengths[::2].copy()))


def test_more_shapes_than_are_kept(graph: BoundGraph) -> None:
    """The first is made again, and gives the same."""
    first = _bits(*graph.run(*_draw(1, 1)))
    for batch in range(2, KEPT_SETS + 3):
        graph.run(*_draw(batch, 1))
    assert _bits(*graph.run(*_draw(1, 1))) == first


def test_threads_do_not_share_arrays(graph: BoundGraph) -> None:
    """Four of them, each with rows of its own, get what each gets alone."""
    rows = [_draw(2, 3, seed) for seed in range(4)]
    wanted = [_bits(*graph.run(*row)) for row in rows]
    wrong: list[int] = []

    def work(k: int) -> None:
        wrong.extend(k for _ in range(300) if _bits(*graph.run(*rows[k])) != wanted[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(rows))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_no_result_is_minus_zero(graph: BoundGraph) -> None:
    """c that decays from -1e-45 is -0.0 in the node, and h with it."""
    for batch in (1, LARGE_BATCH):
        x = np.zeros((batch, 1, 3), np.float32)
        low = np.full((batch, 1, HIDDEN), -0.0, np.float32)
        _, after = graph.run(x, {"h": low, "c": low}, np.ones(batch, np.int64))
        for value in after.values():
            assert not np.signbit(value[value == 0]).any()
