"""The gate's defaults: how much of an error is allowed, by what y means.

| y | a float variant | an int8 variant |
| --- | --- | --- |
| numbers | 1e-5 + 1e-5 |y|; closed loop 1e-4 | a tenth of the standard deviation of each output; \
closed loop 0.3 |
| logits of tokens or classes | the same | a tenth of the standard deviation of all of them |
| a score | the same | a tenth of its standard deviation; of a reconstruction's error, of its \
threshold, if that is more |

The standard deviation is that of the reference's y over the real input. Rounding to 8 bits moves
an answer by a share of what it does; an output that hardly moves is held to as little. Where a
shock throws the reference's answer off, an int8 variant may be off by a tenth of that as well. No
variant is held to less than a float one. A float variant that exceeds this where real input, shocks
or silence lead it may be off by as much as rounding moves the module itself, several times over.
"""

from dataclasses import dataclass, replace

import numpy as np

from export.spread import flat_outputs, spread_of
from service.manifest import Tolerance
from service.pipeline import Alarm, Meaning

Array = np.ndarray
FLOAT = Tolerance(atol=1e-5, rtol=1e-5)
FLOAT_CLOSED_LOOP = Tolerance(atol=1e-4, rtol=1e-4)  # feedback multiplies rounding by its gain
OWN_ROUNDING = 8  # times what a nudge of 1e-6 does to the reference, if that is more
INT8_SHARE = 0.1
INT8_CLOSED_LOOP_SHARE = 0.3
LEAST_SPREAD = FLOAT.atol / INT8_SHARE  # that a share is taken of
WORSENING = 0.05  # of an int8 variant's metrics: of an error's value, or as percentage points


@dataclass(frozen=True)
class Allowance:
    """What is allowed of one variant in one case, and why."""

    tolerance: Tolerance  # of the output that is allowed most
    per_output: Array  # (O,) atol of each
    why: str
    share: float = 0.0  # of what a shock does to the reference's y

    def of(self, y: Array, calm: Array | None, moved: Array | None = None) -> Array:
        """(B, T, O): the allowed error beside each number of the reference's y (B, T, ...).

        Args:
            calm: (B, T, ...) what the reference answers without the shocks; None: there are none.
            moved: (B, T, O) how far rounding moves the reference itself; None: it was not asked.
        """
        allowed = self.per_output + self.tolerance.rtol * np.abs(flat_outputs(y))
        if calm is not None:
            allowed = allowed + self.share * np.abs(flat_outputs(y) - flat_outputs(calm))
        if moved is not None:
            allowed = np.maximum(allowed, OWN_ROUNDING * moved)
        return np.asarray(allowed)

    def steep(self, moved: Array) -> "Allowance":
        """What is said of it where the reference itself is moved as far as this by rounding."""
        atol = max(self.tolerance.atol, _round(OWN_ROUNDING * float(moved.max())))
        why = f"{self.why}: {OWN_ROUNDING} times what it does to the module itself"
        return replace(self, tolerance=self.tolerance.model_copy(update={"atol": atol}), why=why)


class Tolerances:
    """The defaults for one model."""

    def __init__(self, y: Array, means: Meaning, alarm: Alarm | None) -> None:
        """Args:
        y: (B, T, ...) the reference's on real input.
        """
        self.spread = spread_of(y)
        self._scale, self._of = self.spread, "each output's standard deviation"
        if means in ("tokens", "classes"):
            # Softmax compares them with each other: what differs between them is part of the scale.
            everything = spread_of(y.reshape(1, -1, 1))
            self._scale = np.full_like(self.spread, everything[0])
            self._of = "the logits' standard deviation"
        elif means == "score":
            self._of = "the score's standard deviation"
            if alarm and alarm.is_reconstruction and abs(alarm.threshold) > self.spread.max():
                self._scale = np.full_like(self.spread, abs(alarm.threshold))
                self._of = "the alarm's threshold, which is more than the score's deviation"

    def of(self, variant: str, override: float | None, closed_loop: bool) -> Allowance:
        """For `variant`; `override` is an atol given by the user, in the model's units."""
        if override is not None:
            share = INT8_SHARE if "int8" in variant else 0.0
            return self._allow(
                Tolerance(atol=override), "asked for with --tolerance or --max-drift", share
            )
        floating = FLOAT_CLOSED_LOOP if closed_loop else FLOAT
        if "int8" not in variant:
            return self._allow(floating, "rounding of float32")
        share = INT8_CLOSED_LOOP_SHARE if closed_loop else INT8_SHARE
        each = [
            _round(max(share * max(scale, LEAST_SPREAD), floating.atol))
            for scale in self._scale.tolist()
        ]
        why = f"int8: {share:.0%} of {self._of}"
        return Allowance(Tolerance(atol=max(each)), np.array(each), why, INT8_SHARE)

    def _allow(self, tolerance: Tolerance, why: str, share: float = 0.0) -> Allowance:
        return Allowance(tolerance, np.full_like(self.spread, tolerance.atol), why, share)


def _round(value: float) -> float:
    """Two significant digits: a tolerance to be read by people."""
    return float(f"{value:.1e}")
