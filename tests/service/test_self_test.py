"""The self-test says how far a variant is off on this machine, and whether its rows mix."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.artifact import Artifact
from service.errors import SelfTestError
from service.layout import State
from service.onnx_backend import OnnxBackend
from service.runtime import Runtime
from service.self_test import SelfTest, run_self_test
from tests.service.build_artifact import Spec, build_artifact

Array = np.ndarray
Result = tuple[Array, State]
Change = Callable[[Array, Result], Result]


def self_test(path: Path) -> SelfTest:
    artifact = Artifact.load(path)
    return run_self_test(artifact, Runtime(artifact, "onnx-fp32"), artifact.golden())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return build_artifact(tmp_path, Spec("sine-cell", seed=1))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Make ONNX Runtime give what a change of (x, its result) says."""
    real = OnnxBackend.run

    def install(change: Change) -> None:
        def run(self: OnnxBackend, x: Array, state: State, lengths: Array) -> Result:
            return change(x, real(self, x, state, lengths))

        monkeypatch.setattr(OnnxBackend, "run", run)

    return install


def test_a_sound_variant_passes_every_way_and_is_isolated(path: Path) -> None:
    """With the greatest error found, far inside what is allowed."""
    found = self_test(path)
    assert [replay.way for replay in found.replays] == [
        "each alone",
        "in one batch",
        "step by step",
    ]
    assert found.passed and found.isolated and found.failure() is None
    assert 0 < found.worst.max_error < 1e-6
    assert found.worst.allowed == 1e-5


def test_what_is_off_is_found_with_its_place(path: Path, kernels: Callable[[Change], None]) -> None:
    """Here y of the last sequence at step 5, when all run in one batch."""

    def shift(x: Array, result: Result) -> Result:
        y, state = result
        if len(x) == 3:
            y[2, 5] += 0.25
        return y, state

    kernels(shift)
    found = self_test(path)
    assert [replay.passed for replay in found.replays] == [True, False, True]
    assert (found.worst.sequence, found.worst.step) == (2, 5)
    assert found.worst.max_error == pytest.approx(0.25, abs=1e-5)
    assert not found.passed
    with pytest.raises(
        SelfTestError, match=r"off by 0\.25 at step 5 of golden sequence 2, run in o"
    ):
        raise found.failure() or AssertionError


def test_a_wrong_state_shows_step_by_step(path: Path, kernels: Callable[[Change], None]) -> None:
    """y of each call is right, what it hands on is not."""
    kernels(lambda x, result: (result[0], {n: v + 0.01 for n, v in result[1].items()}))
    found = self_test(path)
    assert [replay.passed for replay in found.replays] == [True, True, False]


def test_nan_fails(path: Path, kernels: Callable[[Change], None]) -> None:
    """It is no error that is small enough."""

    def poison(x: Array, result: Result) -> Result:
        result[0][:, 3:4] = np.nan
        return result

    kernels(poison)
    found = self_test(path)
    assert not found.passed and np.isnan(found.worst.max_error)
    assert found.worst.step == 3


@pytest.mark.parametrize(
    "mixes",
    [
        lambda x: np.abs(x[..., 0]).max() > 1e3,  # one scale for the whole batch
        lambda x: len(x) > 32,  # another kernel for wide batches
    ],
)
def test_a_variant_that_only_a_crowd_moves_is_not_isolated(
    path: Path, kernels: Callable[[Change], None], mixes: Callable[[Array], bool]
) -> None:
    """The golden sequences together are calm and few; strangers are neither."""
    kernels(lambda x, r: (r[0] + np.float32(1e-6 if mixes(x) else 0), r[1]))
    found = self_test(path)
    assert found.passed and not found.isolated


def test_token_ids_are_crowded_by_ids_that_the_model_knows(tmp_path: Path) -> None:
    """Hostile floats would be no rows of the embedding."""
    assert self_test(build_artifact(tmp_path, Spec("ids", ids=7, input_size=4))).isolated


def test_an_engine_that_fails_is_said_with_the_way(
    path: Path, kernels: Callable[[Change], None]
) -> None:
    """In the engine's words."""

    def fail(x: Array, result: Result) -> Result:
        raise RuntimeError("illegal instruction")

    kernels(fail)
    with pytest.raises(SelfTestError, match="cannot run its golden sequences each alone: illegal"):
        self_test(path)
