"""The gate: does a variant compute what was trained, over thousands of carried steps?

Rules
- Every measurement runs the very `Runtime` that the service runs.
- The variant gets a case's whole sequence in random chunks with its own state carried.
- The tolerance is stated as atol and rtol of the model's units. A variant that exceeds it anywhere
  fails; whether it is then left out or ends the export, `exporter` decides.
"""

from dataclasses import dataclass

import numpy as np
import torch

from export.cases import CLOSED_LOOP, GENERATED, HORIZON, TEACHER_FORCED, Case, Cases, chunks
from export.errors import CausalityError
from service.layout import State
from service.manifest import Parity, Tolerance
from service.runtime import Runtime

Array = np.ndarray
FLOAT_TOLERANCE = Tolerance(atol=1e-5, rtol=1e-5)
# int8 is measured against what the output does: a share of the reference's standard deviation,
# and never less than the floor, which is as much of the data's own where the model is standardised
# (of the threshold, where y is the error of a reconstruction).
INT8_SHARE = {TEACHER_FORCED: 0.1, CLOSED_LOOP: 0.3, GENERATED: 0.1}
INT8_FLOOR = {TEACHER_FORCED: 0.01, CLOSED_LOOP: 0.03, GENERATED: 0.01}
FLOAT_CLOSED_LOOP = Tolerance(
    atol=1e-4, rtol=1e-4
)  # feedback multiplies rounding by the loop's gain


@dataclass(frozen=True)
class Measured:
    """The error of one variant over one case: |variant - reference|, greatest of each step."""

    variant: str
    case: Case
    errors: Array  # (T,) in the model's units
    excess: Array  # (T,) error / tolerance, greatest of each step
    tolerance: Tolerance

    @property
    def passed(self) -> bool:
        return bool((self.excess <= 1).all())  # False for NaN

    @property
    def share_of_spread(self) -> float:
        """The greatest error as a share of the standard deviation of the reference's y."""
        return float(self.errors.max() / max(float(self.case.y.std()), float(np.finfo("f4").tiny)))

    @property
    def worst(self) -> int:
        """The step of the greatest error (of the greatest excess, if it failed)."""
        return int(np.nanargmax(self.errors if self.passed else self.excess))

    def summary(self) -> Parity:
        return Parity(
            case=self.case.name,
            steps=len(self.errors),
            tolerance=self.tolerance,
            max_error=float(self.errors.max()),
            at_step=int(self.errors.argmax()),
            passed=self.passed,
        )


class Gate:
    """Puts every case to a variant, and the module by itself to the reference."""

    def __init__(self, cases: Cases) -> None:
        self._cases = cases

    def check_causal(self) -> None:
        """The module by itself gives what it gives in chunks with its state carried.

        Raises:
            CausalityError: it does not; the message says where, and what looks ahead.
        """
        case, reference = self._cases.teacher_forced, self._cases.reference
        count = case.x.shape[1]
        steps = reference.whole_steps(count)
        steps = list(range(count) if steps is None else steps)
        with torch.no_grad():
            whole = reference.whole(torch.from_numpy(case.x), steps).numpy()
        chunked = case.y[:, steps]
        error = np.abs(whole - chunked)
        excess = error - FLOAT_TOLERANCE.atol - FLOAT_TOLERANCE.rtol * np.abs(chunked)
        if not (excess <= 0).all():
            step = steps[int(np.nanargmax(excess.reshape(*excess.shape[:2], -1).max(axis=(0, 2))))]
            raise CausalityError(
                f"the module gives another y in chunks than over the whole sequence: off by "
                f"{np.nanmax(error):.1e} (allowed {FLOAT_TOLERANCE.atol:g}), worst at step {step} "
                f"of {count}. {reference.what_looks_ahead()}{self._way_out()}"
            )

    def _way_out(self) -> str:
        if self._cases.reference.window:
            return ""
        return (
            ". `--mode windowed --window N` serves it on its last N inputs, N as many as in a "
            "training window"
        )

    def tolerances(self, variant: str, override: float | None) -> dict[str, Tolerance]:
        """atol and rtol of each case for `variant`; `override` is an atol given by the user."""
        if override is not None:
            return {case.name: Tolerance(atol=override) for case in self._cases.every}
        if "int8" not in variant:
            given = {TEACHER_FORCED: FLOAT_TOLERANCE, GENERATED: FLOAT_TOLERANCE}
            return {**given, CLOSED_LOOP: FLOAT_CLOSED_LOOP}
        spread = float(self._cases.teacher_forced.y.std())
        return {
            name: Tolerance(atol=_round(max(self._floor(name), share * spread)))
            for name, share in INT8_SHARE.items()
        }

    def _floor(self, case: str) -> float:
        """A score's scale is its threshold: an error as large as the data's own would hide it."""
        alarm = self._cases.pipeline.alarm
        if alarm and alarm.is_reconstruction:
            return INT8_SHARE[case] * abs(alarm.threshold)
        return INT8_FLOOR[case]

    def measure(self, runtime: Runtime, override: float | None = None) -> list[Measured]:
        """Run every case through `runtime`."""
        cases = self._cases
        y, states = _run_chunks(runtime, cases.teacher_forced, self._initial())
        answers = [(cases.teacher_forced, y)]
        if cases.closed_loop:
            y = self._run_closed_loop(runtime, cases.closed_loop.x, cases.gather(states))
            answers.append((cases.closed_loop, y))
        if cases.generated:
            y, _ = runtime.run(cases.generated.x, cases.gather(states))
            answers.append((cases.generated, y))
        tolerances = self.tolerances(runtime.variant, override)
        return [_compare(runtime.variant, case, y, tolerances[case.name]) for case, y in answers]

    def _initial(self) -> State:
        initial = self._cases.reference.initial(len(self._cases.teacher_forced.x))
        return {name: value.numpy() for name, value in initial.items()}

    def _run_closed_loop(self, runtime: Runtime, x: Array, state: State) -> Array:
        ys = []
        for _ in range(HORIZON):
            y, state = runtime.run(x, state)
            ys.append(y)
            x = self._cases.feed_back(y)
        return np.concatenate(ys, axis=1)


def _run_chunks(runtime: Runtime, case: Case, state: State) -> tuple[Array, dict[int, State]]:
    ys, states = [], {}
    for start, stop in chunks(case.cuts, case.x.shape[1]):
        states[start] = state
        y, state = runtime.run(np.ascontiguousarray(case.x[:, start:stop]), state)
        ys.append(y)
    return np.concatenate(ys, axis=1), states


def _compare(variant: str, case: Case, y: Array, tolerance: Tolerance) -> Measured:
    error = np.abs(y.astype(np.float64) - case.y).reshape(*case.y.shape[:2], -1)
    allowed = tolerance.atol + tolerance.rtol * np.abs(case.y).reshape(error.shape)
    return Measured(
        variant, case, error.max(axis=(0, 2)), (error / allowed).max(axis=(0, 2)), tolerance
    )


def _round(value: float) -> float:
    """Two significant digits: a tolerance to be read by people."""
    return float(f"{value:.1e}")
