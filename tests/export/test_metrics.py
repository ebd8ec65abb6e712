"""The task's metrics, of answers whose metrics are known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from export.errors import SourceError
from export.metrics import auc, compare, error_of, perplexity, share_equal
from export.parity import Gate
from export.target import checked_target, read_target
from service.pipeline import Alarm, Pipeline, Scaling
from tests.export.made_up import MadeUp, MadeUpRuntime, Step, cases_of, gate_of, noise

REAL_GATE = True  # tests/export/conftest.py
STEPS = 600


def metrics(gate: Gate, step: Step) -> dict[str, tuple[float, float, bool]]:
    """name -> the reference's, the variant's, and whether it is good enough."""
    found = gate.measure(MadeUpRuntime(step), override=1e9)  # type: ignore[arg-type]
    return {q.name: (q.reference, q.variant, q.passed) for m in found for q in m.metrics}


def test_a_forecast_is_held_against_the_real_next_input_in_raw_units() -> None:
    """Persistence on a line of slope 0.5: off by a half one step ahead, not where it is cycled."""

    def persistence(offset: float) -> Step:
        def step(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return x + offset, h

        return step

    scaling = Scaling(mean=[10.0], std=[4.0])
    raw = 0.5 * np.arange(250)[:, None]
    x = ((raw - 10) / 4).astype(np.float32)
    pipeline = Pipeline(x=scaling, y=scaling)
    cases = cases_of(MadeUp(persistence(0)), x, steps=STEPS, pipeline=pipeline)
    found = metrics(gate_of(cases), persistence(-0.125))
    reference, variant, passed = found["RMSE, one step"]
    assert reference == pytest.approx(0.5, rel=1e-4)
    assert variant == pytest.approx(1.0, rel=1e-4)  # 0.125 of the model's units is 0.5 raw
    assert passed  # the line rises by 36: 0.5 more is little of that
    wanted = math.sqrt((0.25 * np.arange(1, 51) ** 2).mean())
    assert found["RMSE, 50 steps"][0] == pytest.approx(wanted, rel=1e-4)
    assert not metrics(gate_of(cases), persistence(-1.0))["RMSE, one step"][2]
    assert not metrics(gate_of(cases, worsening=0.01), persistence(-0.125))["RMSE, one step"][2]


def test_a_target_takes_the_place_of_the_next_input() -> None:
    """y = 2 x by the module and by truth; a variant that says 2.2 x is off by 0.2."""

    def times(factor: float) -> Step:
        def step(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return factor * x, h

        return step

    x = noise(250)
    truth = 2 * x[None].astype(np.float64)
    truth[0, :100] = np.nan
    gate = gate_of(cases_of(MadeUp(times(2)), x, steps=STEPS), truth)
    found = metrics(gate, times(2.2))
    known = np.concatenate([x[100:], x[100:], x[100:100]])
    assert [*found] == ["RMSE"]
    assert found["RMSE"][0] == pytest.approx(0, abs=1e-6)
    assert found["RMSE"][1] == pytest.approx(0.2 * np.sqrt((known**2).mean()), rel=1e-4)


def test_perplexity_is_how_many_tokens_are_in_question() -> None:
    """Even logits over four tokens: four; certain ones: one."""
    ids = np.array([0, 3, 1])
    assert perplexity(np.zeros((3, 4)), ids).value == pytest.approx(4)
    assert perplexity(100 * np.eye(4)[ids], ids).value == pytest.approx(1)

    def counting(certainty: float) -> Step:
        def step(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return certainty * torch.nn.functional.one_hot((x + 1) % 4, 4).float(), h

        return step

    pipeline = Pipeline(vocabulary=("a", "b", "c", "d"))
    ids = np.arange(200) % 4
    cases = cases_of(MadeUp(counting(9)), ids, outputs=4, steps=STEPS, pipeline=pipeline)
    found = metrics(gate_of(cases), counting(1))
    reference, variant, passed = found["perplexity"]
    assert reference == pytest.approx(1 + 3 * math.exp(-9), rel=1e-4)
    assert variant == pytest.approx(1 + 3 * math.exp(-1), rel=1e-4)
    assert not passed


def test_classes_agree_with_the_reference_and_with_the_truth() -> None:
    """A variant that is wrong at a tenth of the steps."""

    def sign(flipped: bool) -> Step:
        def step(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.where(flipped & (t % 10 == 0), -x, x)
            return torch.cat([-y, y], dim=1), h

        return step

    x = noise(200)
    truth = (x[None, :, 0] > 0).astype(np.int64)
    truth[0, :20] = 1 - truth[0, :20]
    pipeline = Pipeline(classes=("down", "up"))
    cases = cases_of(MadeUp(sign(False)), x, outputs=2, steps=STEPS, pipeline=pipeline)
    found = metrics(gate_of(cases, truth), sign(True))
    assert found["agreement with the reference"][:2] == pytest.approx((1, 0.9))
    assert found["accuracy"][:2] == pytest.approx((0.9, 0.82))
    assert not any(passed for _, _, passed in found.values())


def test_a_score_finds_the_shocks_and_gives_the_same_alarms() -> None:
    """|x| ranks every shock first; a variant that says nothing ranks them as chance does."""

    def score(gain: float) -> Step:
        def step(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return gain * x.abs(), h

        return step

    x = noise(STEPS)
    pipeline = Pipeline(alarm=Alarm(score="y", threshold=2.0))
    gate = gate_of(cases_of(MadeUp(score(1)), x, steps=STEPS, pipeline=pipeline))
    found = metrics(gate, score(0))
    assert found["AUC of the shocks"] == (1, 0.5, False)
    alarms = float((np.abs(x) > 2).mean())
    assert found["same alarm as the reference"][1] == pytest.approx(1 - alarms)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    """Counted by hand; ties count one half."""
    found = auc("AUC", np.array([3.0, 1.0, 2.0, 2.0]), np.array([True, False, False, True]))
    assert found is not None and found.value == pytest.approx((2 + 1.5) / 4)
    assert auc("AUC", np.array([1.0, 2.0]), np.array([False, False])) is None


def test_a_worsening_is_a_share_of_an_error_and_points_of_a_share() -> None:
    """NaN is never good enough."""
    truth = np.array([[-1.0], [1.0]])
    far, near = (error_of("RMSE", truth + by, truth, "") for by in (2.0, 1.0))
    assert far is not None and near is not None
    assert compare(near, far, 0.5).worsening == pytest.approx(1.0)
    assert compare(far, near, 0.0).passed
    ids = np.arange(4)
    same, half = share_equal("", ids, ids), share_equal("", ids, np.array([0, 1, 0, 0]))
    assert compare(same, half, 0.5).worsening == pytest.approx(0.5)
    broken = error_of("RMSE", truth * np.nan, truth, "")
    assert broken is not None and not compare(far, broken, 1e9).passed


@pytest.mark.parametrize(
    ("target", "means", "said"),
    [
        (np.zeros((7, 2)), "numbers", r"shape \(7, 2\), expected .*\(8, 2\).*the true y, in raw"),
        (np.full((8, 2), np.nan), "numbers", "infinity, or nothing but NaN"),
        (np.zeros((8, 2)), "classes", r"shape \(8, 2\), expected \(8,\).* id of the true class"),
        (np.full(8, 2), "classes", "holds 2 to 2, expected 0 to 1: the id of the true class"),
        (np.full(8, 0.5), "tokens", "fractions or NaN, expected the id of the true token"),
        (np.ones(8), "score", "is 1 at every step: an AUC needs both kinds"),
    ],
)
def test_a_wrong_target_is_refused(target: np.ndarray, means: str, said: str) -> None:
    """What came and what was expected."""
    with pytest.raises(SourceError, match=said):
        checked_target(target, (1, 8, 3), (2,), means, 2)  # type: ignore[arg-type]


def test_a_target_is_taken_with_or_without_its_axes_of_one() -> None:
    """(T,), (T, 1) and (1, T, 1) are the same numbers."""
    values = np.arange(8.0)
    for shape in ((8,), (8, 1), (1, 8, 1)):
        found = checked_target(values.reshape(shape), (1, 8, 3), (1,), "numbers", 1)
        np.testing.assert_array_equal(found, values.reshape(1, 8, 1))


def test_a_file_that_is_no_array_is_refused(tmp_path: Path) -> None:
    """The file is named, and what to do."""
    path = tmp_path / "t.npy"
    path.write_text("1,2,3")
    with pytest.raises(SourceError, match=r"t\.npy is not a \.npy file of numbers.*numpy\.save"):
        read_target(path)
    np.save(path, np.array(["a", "b"]))
    with pytest.raises(SourceError, match="expected numbers; save floats or ints"):
        read_target(path)
