"""What the gate found of one variant in one case."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.cases import Case
from export.climate import Divergence
from export.metrics import Metric, Score, compare
from export.spread import flat_outputs
from export.tolerances import Allowance
from service import manifest
from service.manifest import Parity, Tolerance

Array = np.ndarray
DIGITS = 4  # of the errors in parity.json


@dataclass(frozen=True)
class Measured:
    """The error of one variant over one case: |variant - reference|, greatest of each step."""

    variant: str
    case: Case
    errors: Array  # (T,) in the model's units
    excess: Array  # (T,) error / allowed, greatest of each step; more than 1 is too much
    tolerance: Tolerance  # of the output that is allowed most
    why: str  # it is this much
    share_of_spread: float  # the greatest judged error, as a share of its output's deviation
    divergence: Divergence | None = None  # of the long run; None: it has none
    metrics: tuple[Metric, ...] = ()

    @property
    def judged(self) -> int:
        """How many steps the errors of which are judged, from the first on."""
        return len(self.errors) if self.case.judged is None else self.case.judged

    @property
    def within(self) -> bool:
        """Every judged error is within its tolerance."""
        return bool((self.excess[: self.judged] <= 1).all())  # False for NaN

    @property
    def diverges(self) -> bool:
        return self.divergence is not None and self.divergence.diverges

    @property
    def passed(self) -> bool:
        return self.within and not self.diverges and all(m.passed for m in self.metrics)

    @property
    def max_error(self) -> float:
        """The greatest judged error; NaN if one is."""
        return float(self.errors[: self.judged].max())

    @property
    def worst(self) -> int:
        """The judged step of the greatest error (of the greatest excess, if it failed)."""
        curve = (self.errors if self.within else self.excess)[: self.judged]
        return int(np.nan_to_num(curve, nan=np.inf).argmax())

    @property
    def faults(self) -> list[str]:
        """Why it did not pass, in words."""
        found = []
        name = self.case.name
        if not self.within:
            found.append(
                f"{self.variant} drifts to {self.errors[self.worst]:.1e} at step {self.worst} of "
                f"{len(self.errors)} (atol {self.tolerance.atol:g}, rtol {self.tolerance.rtol:g}) "
                f"on case `{name}`"
            )
        if self.divergence is not None and self.divergence.why is not None:
            found.append(f"{self.variant} diverges on case `{name}`: it {self.divergence.why}")
        found += [
            f"{self.variant} worsens `{m.name}` from {m.reference:.4g} to {m.variant:.4g} {m.unit} "
            f"({m.worsening:+.1%}, allowed {m.allowed:.1%}) on case `{name}`"
            for m in self.metrics
            if not m.passed
        ]
        return found

    def summary(self) -> Parity:
        divergence = self.divergence
        return Parity(
            case=self.case.name,
            steps=len(self.errors),
            judged_steps=self.judged,
            tolerance=self.tolerance,
            why=self.why,
            max_error=self.max_error,
            at_step=int(self.errors[: self.judged].argmax()),
            share_of_spread=self.share_of_spread,
            passed=self.passed,
            diverges=None if divergence is None else divergence.diverges,
            metrics=[manifest.Metric(**vars(m), passed=m.passed) for m in self.metrics],
        )

    def as_json(self) -> dict[str, object]:
        """As it stands in parity.json: the summary, and the whole curve."""
        divergence = self.divergence
        return {
            "variant": self.variant,
            **self.summary().model_dump(mode="json"),
            "divergence": None
            if divergence is None
            else {**vars(divergence), "shift": _number(divergence.shift)},
            "rows": len(self.case.x),
            "example_cycled": self.case.cycled,
            "places": self.case.places,
            "error_by_step": [_number(error) for error in self.errors],
        }


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity: null."""
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def measure(
    variant: str,
    case: Case,
    y: Array,
    allowance: Allowance,
    spread: Array,
    scores: tuple[list[Score], list[Score]] = ([], []),
    worsening: float = 0.0,
) -> Measured:
    """Hold a variant's y (B, T', ...), T' at least the case's, against the reference's.

    Args:
        spread: (O,) the standard deviation of each output.
        scores: the reference's and the variant's, in the same order.
        worsening: how much worse the variant's may be.
    """
    y = y[:, : case.y.shape[1]]
    error = np.abs(flat_outputs(y) - flat_outputs(case.y))
    judged = case.y.shape[1] if case.judged is None else case.judged
    divergence = None
    if case.climate is not None:
        divergence = case.climate.judge(y[: case.climate.rows])
    return Measured(
        variant,
        case,
        error.max(axis=(0, 2)),
        (error / allowance.of(case.y, case.calm, case.moved)).max(axis=(0, 2)),
        allowance.tolerance,
        allowance.why,
        float((error[:, :judged] / spread).max()),
        divergence,
        tuple(compare(*pair, worsening) for pair in zip(*scores, strict=True)),
    )


def faults_of(measured: Sequence[Measured]) -> str:
    """The first fault of each variant, and on what other cases it failed; empty if none did."""
    failed: dict[str, list[Measured]] = {}
    for m in measured:
        if not m.passed:
            failed.setdefault(m.variant, []).append(m)
    said = []
    for first, *more in failed.values():
        also = ", ".join(f"`{m.case.name}`" for m in more)
        said.append(first.faults[0] + (f", and fails on {also}" if also else ""))
    return "; ".join(said)
