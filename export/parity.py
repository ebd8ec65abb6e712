"""The gate: does a variant compute what was trained, over thousands of carried steps?

Rules
- Every measurement runs the very `Runtime` that the service runs.
- The variant gets a case's whole sequence in random chunks with its own state carried.
- The tolerance is stated as atol and rtol of the model's units, and is what `tolerances` says for
  the model's task, unless the user said another. A variant that exceeds it anywhere, diverges where
  nothing leads it, or worsens a metric of the task by more than is allowed, fails; whether it is
  then left out or ends the export, `exporter` decides.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from export.cases import CLOSED_LOOP, GENERATED, Cases, split_rows
from export.errors import CausalityError
from export.measured import Measured, measure
from export.running import Advance, Tell
from export.scoring import Scoring
from export.tolerances import FLOAT, WORSENING, Tolerances
from service.layout import State
from service.runtime import Runtime

Array = np.ndarray
# Of the real input, when the module by itself is compared with its chunks: what looks ahead shows
# at once, and a module that attends to all steps so far takes memory by their square.
CAUSAL_STEPS = 2_000


class Gate:
    """Puts every case to a variant, and the module by itself to the reference."""

    def __init__(
        self,
        cases: Cases,
        target: Array | None = None,
        worsening: float | None = None,
        progress: Callable[[str], None] = lambda what: None,
    ) -> None:
        """Args:
        target: (N, T, ...) the truth of y, as `checked_target` gives it.
        worsening: by how much a variant's metrics may be worse than the reference's, in place of
            the default: a share of an error's value, or of percentage points.
        """
        self._cases = cases
        self._tolerances = Tolerances(cases.teacher_forced.y, cases.means, cases.pipeline.alarm)
        self._scoring = Scoring(cases, target)
        self._own = self._scoring.scores({case.name: case.y for case in cases.every})
        self._worsening = WORSENING if worsening is None else worsening
        self._progress = progress

    def check_causal(self) -> None:
        """The module by itself gives what it gives in chunks with its state carried.

        Raises:
            CausalityError: it does not; the message says where, and what looks ahead.
        """
        case, reference = self._cases.teacher_forced, self._cases.reference
        count = min(case.x.shape[1], CAUSAL_STEPS)
        steps = reference.whole_steps(count)
        steps = list(range(count) if steps is None else steps)
        with torch.no_grad():
            whole = reference.whole(torch.from_numpy(case.x[:, :count]), steps).numpy()
        chunked = case.y[:, steps]
        error = np.abs(whole - chunked)
        excess = error - FLOAT.atol - FLOAT.rtol * np.abs(chunked)
        if not (excess <= 0).all():
            step = steps[int(np.nanargmax(excess.reshape(*excess.shape[:2], -1).max(axis=(0, 2))))]
            raise CausalityError(
                f"the module gives another y in chunks than over the whole sequence: off by "
                f"{np.nanmax(error):.1e} (allowed {FLOAT.atol:g}), worst at step {step} "
                f"of {count}. {reference.what_looks_ahead()}{self._way_out()}"
            )

    def _way_out(self) -> str:
        if self._cases.reference.window:
            return ""
        return (
            ". `--mode windowed --window N` serves it on its last N inputs, N as many as in a "
            "training window"
        )

    def measure(self, runtime: Runtime, override: float | None = None) -> list[Measured]:
        """Run every case through `runtime`.

        Args:
            override: an absolute tolerance in place of the defaults, in the model's units.
        """
        cases, variant = self._cases, runtime.variant
        answers = self._answers(runtime.run, variant)
        scores = self._scoring.scores(answers)
        found = []
        for case in cases.every:
            allowance = self._tolerances.of(variant, override, case.name == CLOSED_LOOP)
            own = self._own.get(case.name, []), scores.get(case.name, [])
            y = answers[case.name]
            one = measure(variant, case, y, allowance, cases.spread, own, self._worsening)
            strict = override is not None or "int8" in variant
            if not one.passed and not strict and case.name in cases.rounding:
                moved = cases.rounding[case.name]
                steep = replace(case, moved=moved), y, allowance.steep(moved)
                again = measure(variant, *steep, cases.spread, own, self._worsening)
                one = again if again.passed else one
            found.append(one)
        return found

    def _answers(self, advance: Advance, variant: str) -> dict[str, Array]:
        """case -> y (B, T, ...)."""
        cases = self._cases
        answers: dict[str, Array] = {}
        states: State = {}
        for batch in cases.driven:
            names = ", ".join(case.name for case in batch)
            run = cases.run_batch(advance, batch, self._tell(variant, names, batch[0].x.shape[1]))
            answers |= dict(zip((c.name for c in batch), split_rows(run.y, batch), strict=True))
            states = states or cases.gather(run.states)
        if cases.closed_loop:
            tell = self._tell(variant, CLOSED_LOOP, cases.closed_loop.y.shape[1])
            answers[CLOSED_LOOP] = cases.run_closed_loop(advance, states, tell).y
        if cases.generated:
            answers[GENERATED] = advance(cases.generated.x, states)[0]
        return answers

    def _tell(self, variant: str, what: str, steps: int) -> Tell:
        def tell(done: int) -> None:
            self._progress(f"proving {variant}: {what}, {done:,} of {steps:,} steps")

        return tell
