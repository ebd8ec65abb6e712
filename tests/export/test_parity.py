"""What the gate finds of variants whose faults are known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from export.cases import HORIZON
from export.climate import Climate
from export.measured import Measured
from export.parity import Gate
from export.tolerances import FLOAT
from service.pipeline import Pipeline, Scaling
from tests.export.made_up import MadeUp, MadeUpRuntime, Step, cases_of, gate_of, noise

REAL_GATE = True  # tests/export/conftest.py
STEPS = 2_000
LEAK = 0.9


def leaky(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Leaky integrator: h' = 0.9 h + 0.1 x, and y is h'; not a next x, which has two columns."""
    h = LEAK * h + (1 - LEAK) * x[:, :1]
    return h, h


def measured(gate: Gate, step: Step, variant: str = "onnx-int8") -> dict[str, Measured]:
    return {m.case.name: m for m in gate.measure(MadeUpRuntime(step, variant))}  # type: ignore[arg-type]


def failed(found: dict[str, Measured]) -> list[str]:
    return [name for name, m in found.items() if not m.passed]


@pytest.fixture(scope="module")
def gate() -> Gate:
    x = np.concatenate([noise(STEPS, 0), noise(STEPS, 1)], axis=1)
    return gate_of(cases_of(MadeUp(leaky), x, steps=STEPS))


def test_the_error_of_every_step_is_the_one_that_arithmetic_gives(gate: Gate) -> None:
    """A state rounded to 1/127: the curve is what numpy computes, and stays below its bound."""

    def rounded(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        h, _ = leaky(x, h, t)
        h = torch.round(h * 127) / 127
        return h, h

    found = measured(gate, rounded)
    real = found["teacher-forced"]
    x = real.case.x[0, :, 0]
    exact = grid = 0.0
    curve = []
    for value in x.astype(np.float64):
        exact = LEAK * exact + (1 - LEAK) * value
        grid = np.rint((LEAK * grid + (1 - LEAK) * value) * 127) / 127
        curve.append(abs(exact - grid))
    np.testing.assert_allclose(real.errors, curve, atol=2e-6)
    assert 0.5 / 127 < real.max_error < 0.5 / 127 / (1 - LEAK)
    assert [len(m.errors) for m in found.values()] == [STEPS] * 3
    assert [*found] == ["teacher-forced", "shock", "silence"]


def test_a_variant_that_breaks_late_in_the_run_fails(gate: Gate) -> None:
    """From step 1,700 on: worst is there, and the message says so."""

    def late(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        y, h = leaky(x, h, t)
        return y + (t >= 1700), h

    real = measured(gate, late)["teacher-forced"]
    assert not real.passed
    assert real.worst >= 1700
    assert real.errors[1700] == pytest.approx(1) and real.errors[:1700].max() == 0
    assert "drifts to 1.0e+00 at step" in real.faults[0]


def test_a_variant_that_breaks_in_silence_fails_there_alone(gate: Gate) -> None:
    """Input held at zero, after some that was real."""

    def silent(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        y, h = leaky(x, h, t)
        return y + 0.2 * (x == 0).all(dim=1, keepdim=True), h

    found = measured(gate, silent)
    assert failed(found) == ["silence"]
    (begins,) = found["silence"].case.places
    assert found["silence"].errors[:begins].max() == 0
    assert (found["silence"].errors[begins:] > 0.1).all()


def test_a_variant_that_breaks_after_a_shock_fails_there_alone() -> None:
    """A state that a spike latches, and that no calm input ever does."""

    def latching(x: Tensor, h: Tensor, t: Tensor, harm: float = 0) -> tuple[Tensor, Tensor]:
        y, leak = leaky(x, h[:, :1], t)
        latch = torch.maximum(h[:, 1:], (x[:, :1].abs() > 6).float())
        return y + harm * latch, torch.cat([leak, latch], dim=1)

    x = np.concatenate([noise(STEPS, 0), noise(STEPS, 1)], axis=1)
    gate = gate_of(cases_of(MadeUp(latching, hidden=2), x, steps=STEPS))
    found = measured(gate, lambda x, h, t: latching(x, h, t, harm=0.2))
    assert failed(found) == ["shock"]
    shock = found["shock"]
    assert len(shock.case.places) == 8
    assert np.nonzero(shock.errors)[0][0] == shock.case.places[0]
    assert np.abs(shock.case.x[0, shock.case.places, 0]) == pytest.approx(10, rel=0.1)


def test_while_a_shock_throws_the_reference_off_int8_may_be_off_by_a_tenth_of_that(
    gate: Gate,
) -> None:
    """A tenth too much of the spike passes; two tenths do not."""

    def too_much(share: float) -> Step:
        def step(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return leaky(x * (1 + share * (x[:, :1].abs() > 6)), h, t)

        return step

    assert not failed(measured(gate, too_much(0.09)))
    assert failed(measured(gate, too_much(0.2))) == ["shock"]


def test_a_variant_that_is_not_finite_fails_and_the_rows_beside_it_are_seen_to_the_end(
    gate: Gate,
) -> None:
    """NaN after a shock stays in the shock's row."""

    def breaking(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        y, h = leaky(x, h, t)
        return y.masked_fill(x[:, :1].abs() > 6, torch.nan), h

    found = measured(gate, breaking)
    assert failed(found) == ["shock"]
    shock = found["shock"]
    assert shock.worst == shock.case.places[0]
    assert np.isnan(shock.errors[shock.case.places[0] :]).all()


def test_a_model_whose_y_hardly_moves_is_held_to_as_little() -> None:
    """y moves by 0.001: an error of 0.001 is no int8 rounding to be allowed."""

    def still(offset: float) -> Step:
        def step(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return 5 + 0.001 * x[:, :1] + offset, h

        return step

    x = np.concatenate([noise(STEPS, 0), noise(STEPS, 1)], axis=1)
    gate = gate_of(cases_of(MadeUp(still(0)), x, steps=STEPS))
    real = measured(gate, still(0.001))["teacher-forced"]
    assert not real.passed
    assert real.share_of_spread == pytest.approx(1, rel=0.1)
    assert real.tolerance.atol == pytest.approx(1e-4, rel=0.1)
    assert real.why == "int8: 10% of each output's standard deviation"
    assert not failed(measured(gate, still(0.00005)))


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_an_output_that_never_moves_divides_nothing_by_zero(constant: float) -> None:
    """It has no deviation; a tenth of its size stands in, and nothing at all for zero."""

    def step(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(x[:, :1], constant), h

    x = np.concatenate([noise(STEPS, 0), noise(STEPS, 1)], axis=1)
    gate = gate_of(cases_of(MadeUp(step), x, steps=300))
    found = measured(gate, step)
    assert not failed(found)
    allowed = found["teacher-forced"].tolerance.atol
    assert allowed == pytest.approx(max(FLOAT.atol, 0.1 * 0.1 * constant))
    assert failed(measured(gate, lambda x, h, t: (step(x, h, t)[0] + 0.05, h)))


def test_each_output_is_held_to_its_own_spread() -> None:
    """One output is a thousand times the other: what is little of it is much of the other."""

    def two(offset: float) -> Step:
        def step(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.cat([1000 * x[:, :1], x[:, 1:2] + offset], dim=1)
            return y, h

        return step

    x = np.concatenate([noise(300, seed) for seed in range(3)], axis=1)
    gate = gate_of(cases_of(MadeUp(two(0)), x, outputs=2, steps=300))
    assert not failed(measured(gate, two(0.05)))
    assert failed(measured(gate, two(1.0)))


# Closed loops -----------------------------------------------------------------------------------


def test_a_closed_loop_that_runs_away_is_divergence() -> None:
    """0.9995 x against 1.0008 x: little at any step, and 3,000 times as much after 10,000."""

    def decaying(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return 0.9995 * x, h

    gate = gate_of(cases_of(MadeUp(decaying), noise(STEPS), steps=10_000))
    found = measured(gate, lambda x, h, t: (1.0008 * x, h))
    loop = found["closed-loop"]
    assert failed(found) == ["closed-loop"]
    assert loop.within and loop.diverges
    assert len(loop.errors) == 10_000 and loop.judged == HORIZON
    assert loop.summary().diverges is True
    assert "diverges on case `closed-loop`: it goes elsewhere in the long run" in loop.faults[0]
    assert measured(gate, decaying)["closed-loop"].summary().diverges is False


def test_a_closed_loop_that_is_not_finite_is_divergence() -> None:
    """The step is named, and the curve ends in NaN."""

    def steady(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return 0.9 * x, h

    def breaking(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where((x.abs() < 1e-9) & (x != 0), torch.nan, 0.9 * x), h

    gate = gate_of(cases_of(MadeUp(steady), noise(STEPS), steps=STEPS))
    loop = measured(gate, breaking)["closed-loop"]
    assert loop.within and loop.diverges
    assert "is not finite from step" in loop.faults[0]


def test_a_slipped_phase_is_no_divergence() -> None:
    """An oscillator that is 0.5 % too fast: after thousands of steps it is elsewhere, and well."""

    def oscillator(rate: float) -> Step:
        def step(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            return 2 * float(np.cos(rate)) * x - h, x

        return step

    wave = np.sin(0.1 * np.arange(6_000))[:, None].astype(np.float32)
    gate = gate_of(cases_of(MadeUp(oscillator(0.1)), wave, steps=6_000))
    loop = measured(gate, oscillator(0.1005))["closed-loop"]
    assert loop.errors[HORIZON:].max() > 1
    assert loop.passed and not loop.diverges
    slow = measured(gate, oscillator(0.1), "onnx-fp32")["closed-loop"]
    assert slow.passed and slow.errors[HORIZON:].max() < 1e-3


def test_a_chaotic_model_is_held_to_its_climate() -> None:
    """Two orbits of one logistic map agree nowhere and are the same; another map's is not."""

    def orbit(rate: float, x: float) -> np.ndarray:
        values = []
        for _ in range(5_000):
            x = rate * x * (1 - x)
            values.append(x)
        return np.array(values)[None, :, None]

    chaos = Climate(orbit(3.99, 0.3), HORIZON, np.array([0.3]))
    assert np.abs(orbit(3.99, 0.3) - orbit(3.99, 0.3 + 1e-9)).max() > 0.9
    assert not chaos.judge(orbit(3.99, 0.3 + 1e-9)).diverges
    assert chaos.judge(orbit(3.2, 0.3)).diverges


def test_a_reference_that_runs_away_by_itself_is_judged_as_far_as_it_goes() -> None:
    """It doubles at each step: there is no climate to keep, and no verdict on it."""

    def doubling(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, h

    gate = gate_of(cases_of(MadeUp(doubling), noise(STEPS), steps=STEPS))
    loop = measured(gate, doubling)["closed-loop"]
    assert loop.passed and loop.summary().diverges is None
    assert HORIZON <= len(loop.errors) < 140


def test_silence_in_which_the_reference_swings_is_judged_by_its_climate() -> None:
    """A phase that slips in it passes, an amplitude three times as large does not."""

    def swinging(slip: float, amplitude: float) -> Step:
        def step(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            phase = 0.1 * t + slip * torch.relu(t - 400)
            swing = torch.where(t < 400, 1.0, amplitude) * torch.cos(phase)
            return torch.where(x[:, :1] == 0, swing, x[:, :1]), h

        return step

    x = np.concatenate([noise(STEPS, 0), noise(STEPS, 1)], axis=1)
    gate = gate_of(cases_of(MadeUp(swinging(0, 1)), x, steps=STEPS))
    found = measured(gate, swinging(5e-4, 1))
    silence = found["silence"]
    assert silence.judged == silence.case.places[0] + HORIZON
    assert silence.errors.max() > 0.5 and not failed(found)
    assert failed(measured(gate, swinging(0, 3))) == ["silence"]


# What is asked -----------------------------------------------------------------------------------


def test_silence_is_zero_in_raw_units_or_what_comes_nearest_to_it() -> None:
    """A pressure that never falls below 90 stays at its least, a whole number at one it had."""
    rng = np.random.default_rng(0)
    raw = np.stack([rng.uniform(90, 110, 500), rng.normal(0, 1, 500), 1 + np.arange(500) % 3])
    scaling = Scaling(mean=[100.0, 0.5, 0.0], std=[5.0, 2.0, 2.0])
    x = ((raw.T - scaling.mean) / scaling.std).astype(np.float32)
    cases = cases_of(MadeUp(leaky), x, steps=500, pipeline=Pipeline(x=scaling))
    silence, shock = cases.named("silence"), cases.named("shock")
    assert silence is not None and shock is not None
    seen = silence.x[0, -1] * np.array(scaling.std) + scaling.mean
    np.testing.assert_allclose(seen, [raw[0].min(), 0, 1], atol=1e-5)
    thrown = shock.x[0, shock.places] * np.array(scaling.std) + scaling.mean
    assert (np.abs(thrown[:, 1]) > 9).all() and (np.abs(thrown[:, 0] - 100) > 50).all()
    assert set(np.round(thrown[:, 2], 4)) <= {1, 3}  # what was seen, at its extremes


def test_silence_of_ids_is_the_commonest_and_a_shock_the_rarest() -> None:
    """An id that was never seen may be none."""

    def table(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.nn.functional.one_hot(x, 8).float(), h

    ids = np.repeat([2, 5, 7], [50, 300, 3]).astype(np.int64)
    cases = cases_of(MadeUp(table), ids, outputs=8, steps=353)
    silence, shock = cases.named("silence"), cases.named("shock")
    assert silence is not None and shock is not None
    assert set(silence.x[0, silence.places[0] :]) == {5}
    assert set(shock.x[0, shock.places]) == {7}


def test_a_case_in_which_the_reference_is_not_finite_is_left_out() -> None:
    """0 / 0 in silence says nothing of a variant."""

    def ratio(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :1] / x[:, :1].abs(), h

    x = np.concatenate([noise(STEPS, 0), noise(STEPS, 1)], axis=1)
    cases = cases_of(MadeUp(ratio), x, steps=300)
    assert [case.name for case in cases.every] == ["teacher-forced", "shock"]


def test_a_longer_example_counts_with_its_first_steps_and_a_shorter_is_cycled() -> None:
    """`--steps` is what is run."""
    x = np.concatenate([noise(STEPS, 0), noise(STEPS, 1)], axis=1)
    short = cases_of(MadeUp(leaky), x[:70], steps=150).teacher_forced
    assert short.cycled
    np.testing.assert_array_equal(short.x[0], np.concatenate([x[:70], x[:70], x[:10]]))
    long = cases_of(MadeUp(leaky), x, steps=150).teacher_forced
    assert not long.cycled
    np.testing.assert_array_equal(long.x[0], x[:150])


def test_a_steep_module_is_held_to_what_rounding_does_to_itself() -> None:
    """y is 300 times what is left of h beside 1: rounding moves it by more than 1e-5.

    A variant that computes the same in another order passes, and why is said; one that is off by
    ten times more fails, and so does the same error in a module that is not steep.
    """

    def steep(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        h = LEAK * h + (1 - LEAK) * x[:, :1]
        return 300 * (h + 1 - 1), h

    def off_by(error: float, step: Step) -> Step:
        def step_off(x: Tensor, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            y, h = step(x, h, t)
            return y + error, h

        return step_off

    x = np.concatenate([noise(STEPS, 0), noise(STEPS, 1)], axis=1)
    gate = gate_of(cases_of(MadeUp(steep), x, steps=STEPS))
    real = measured(gate, off_by(1e-4, steep), "onnx-fp32")["teacher-forced"]
    assert real.passed
    assert "to the module itself" in real.why and 1e-4 < real.tolerance.atol < 5e-3
    assert failed(measured(gate, off_by(2e-2, steep), "onnx-fp32"))
    calm = gate_of(cases_of(MadeUp(leaky), x, steps=STEPS))
    assert failed(measured(calm, off_by(1e-4, leaky), "onnx-fp32"))
