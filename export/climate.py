"""Where a model goes when nothing leads it: does a variant's own course leave the reference's?

Fed with its own output, a chaotic model doubles any rounding every few steps, and an oscillating
one keeps whatever phase it slipped: after thousands of steps the pointwise error says nothing of
either. What a good model of a chaotic system keeps is the climate, the distribution of what it
does in the long run (Pathak et al., "Model-free prediction of large spatiotemporally chaotic
systems", 2018). So the long run is judged by it: a variant diverges if it is not finite, or ever
leaves the range of the reference, or if quantiles of its second half are others.

The reference's own climate is known from few rows, and may be slow to form: how much its third
and its fourth quarter differ is counted in twice.
"""

from dataclasses import dataclass

import numpy as np

from export.spread import flat_outputs, spread_of

Array = np.ndarray
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHIFT = 0.5  # spreads that a quantile may move by
RANGE_SHIFT = 2 * SHIFT  # spreads by which a single value may leave the reference's range


@dataclass(frozen=True)
class Divergence:
    """How far a variant's long run is from the reference's."""

    shift: float  # of the quantile that moved most, in spreads of its output; infinity: not finite
    allowed: float  # spreads
    why: str | None  # it diverges, in words; None: it does not

    @property
    def diverges(self) -> bool:
        return self.why is not None


class Climate:
    """The long run of the reference, from step `start` on."""

    def __init__(self, y: Array, start: int, spread: Array) -> None:
        """Args:
        y: (B, T, ...) of the rows that run on, finite, in the model's units.
        start: the step from which it leads itself.
        spread: (O,) the standard deviation of each output on real input, in the same unit.
        """
        led = flat_outputs(y)[:, start:]
        late = led[:, led.shape[1] // 2 :]
        half = late.shape[1] // 2
        self.rows, self.start = len(y), start
        self._scale = np.maximum(spread, spread_of(late))
        self._quantiles = _quantiles(late)
        own = np.abs(_quantiles(late[:, :half]) - _quantiles(late[:, half:])) / self._scale
        self._own = 2 * float(own.max())
        self._low, self._high = led.min(axis=(0, 1)), led.max(axis=(0, 1))

    @property
    def allowed(self) -> float:
        """Spreads that a quantile may move by."""
        return max(SHIFT, self._own)

    def judge(self, y: Array) -> Divergence:
        """Hold a variant's y (B, T, ...) of the same rows against it."""
        led = flat_outputs(y)[:, self.start :]
        if not np.isfinite(led).all():
            step = int(np.nonzero(~np.isfinite(led).all(axis=(0, 2)))[0][0]) + self.start
            return Divergence(float("inf"), self.allowed, f"is not finite from step {step} on")
        moved = np.abs(_quantiles(led[:, led.shape[1] // 2 :]) - self._quantiles) / self._scale
        quantile, output = np.unravel_index(int(moved.argmax()), moved.shape)
        shift = float(moved.max())
        left = np.maximum(self._low - led, led - self._high) / self._scale  # (B, T, O)
        why: str | None = None
        if shift > self.allowed:
            why = (
                f"goes elsewhere in the long run: the {QUANTILES[quantile]:.0%} quantile of output "
                f"{output} is off by {shift:.2g} standard deviations (allowed {self.allowed:.2g})"
            )
        elif (far := float(left.max())) > max(RANGE_SHIFT, self._own):
            step = int(left.max(axis=(0, 2)).argmax()) + self.start
            why = f"leaves the reference's range by {far:.2g} standard deviations at step {step}"
        return Divergence(shift, self.allowed, why)


def _quantiles(values: Array) -> Array:
    """(B, T, O) -> (Q, O), over all rows and steps."""
    return np.asarray(np.quantile(values, QUANTILES, axis=(0, 1)))
