"""What is quantized is chosen: the plans that were tried, from all in int8 upwards.

Rules
- The first rung has every layer in rowwise int8. Each rung is proven by the whole gate. The first
  that passes is taken.
- A layer's share is the drift of the model with that layer alone quantized, as a part of what is
  allowed, measured on a shorter piece. A layer that is over the limit alone cannot stay: it moves
  to the least precision at which it is not. While the rest is over the limit together, the layer
  whose move takes away the most drift for its weights moves one precision up.
- At most `MAX_RUNGS` are tried: where there are more moves than rungs, several are made at once,
  until the shares no longer add up to more than is allowed.
- Time decides only where the user asks for a gain (`--min-speedup`), since it is never the same
  twice: then a layer that makes a step no faster moves to `weights` before anything is proven, and
  a plan that passes must gain as much as was asked.
- When nothing is left in int8, the variant is left out, and what the first rung did wrong is said.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from export.measured import Measured, faults_of
from export.precision import ALL_ROWWISE, Plan, Precision

MAX_RUNGS = 8
OVER = 2.0  # the share of what fails by something else than its error
WORTH_MOVING = 0.1  # of the greatest relief: to move a layer of less helps little, so it stays

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Rung:
    """A plan that was proven."""

    layers: Mapping[str, Precision]  # of all that can be int8
    measured: Sequence[Measured]
    size: int  # bytes of the variant's files
    speedup: float | None = None  # a step's time in onnx-fp32 / in this plan; None: not timed
    least_speedup: float = 0.0  # asked for

    @property
    def passed(self) -> bool:
        return self.drifts_not and not self.too_slow

    @property
    def drifts_not(self) -> bool:
        return all(m.passed for m in self.measured)

    @property
    def too_slow(self) -> bool:
        return self.speedup is not None and self.speedup < self.least_speedup

    @property
    def plan(self) -> str:
        """What is at which precision, in words."""
        return in_words(self.layers)

    @property
    def max_error(self) -> float:
        return max(m.max_error for m in self.measured)

    @property
    def faults(self) -> list[str]:
        """Why it was not taken, in words."""
        drift = faults_of(self.measured)
        found = [drift] if drift else []
        if self.too_slow:
            found.append(
                f"a step takes 1/{self.speedup:.2f} of onnx-fp32's time, asked was "
                f"1/{self.least_speedup:g} (--min-speedup)"
            )
        return found

    @property
    def verdict(self) -> str:
        """Taken, or why not."""
        return "; ".join(self.faults) or "taken"

    def as_json(self) -> dict[str, object]:
        """As it stands in parity.json."""
        return {
            "layers": {layer: str(precision) for layer, precision in self.layers.items()},
            "cases": [
                {
                    "case": m.case.name,
                    "max_error": m.max_error,
                    "at_step": m.worst,
                    "passed": m.passed,
                }
                for m in self.measured
            ],
            "size": self.size,
            "speedup": self.speedup,
            "verdict": self.verdict,
        }


class Trials(Protocol):
    """What can be found out about a plan."""

    @property
    def layers(self) -> Mapping[str, int]:
        """The layers that can be int8, and how many weights each has."""
        ...

    def prove(self, plan: Plan) -> tuple[Sequence[Measured], int]:
        """The whole gate, and the size in bytes. The files of the last plan are the variant's."""
        ...

    def probe(self, plan: Plan) -> Sequence[Measured]:
        """The gate on a shorter piece."""
        ...

    def gain(self, plan: Plan, over: Plan | None = None) -> float:
        """A step's time in `over` (None: onnx-fp32) / in `plan`."""
        ...


@dataclass(frozen=True)
class Ladder:
    """The rungs, in order, and for each layer that is not rowwise int8 the reason."""

    rungs: Sequence[Rung]
    reasons: Mapping[str, str]

    @property
    def taken(self) -> Rung | None:
        return self.rungs[-1] if self.rungs[-1].passed else None

    @property
    def why_not(self) -> str:
        """What the first rung did wrong, and how many more there were; empty if one is taken."""
        first, *more = self.rungs
        if self.taken:
            return ""
        if self.rungs[-1].too_slow:
            return self.rungs[-1].verdict
        tried = f"{len(more)} other plans drift too, and " if more else ""
        return f"{first.verdict}; {tried}no layer can be quantized at this limit"


def in_words(layers: Mapping[str, Precision]) -> str:
    """`rowwise: a, b; float: c`."""
    named = {p: [layer for layer, found in layers.items() if found is p] for p in Precision}
    return "; ".join(f"{p}: {', '.join(names)}" for p, names in named.items() if names)


def climb(trials: Trials, min_speedup: float | None = None, tell: Tell = lambda _: None) -> Ladder:
    """Try plans until one passes, or nothing is left in int8.

    Args:
        min_speedup: the gain that is asked for; None: nothing is timed.
        tell: told, in a few words, what is tried.
    """
    climber = _Climber(trials, tell)
    if min_speedup is not None:
        climber.leave_what_gains_nothing()
    rungs: list[Rung] = []
    while True:
        tell(f"rung {len(rungs) + 1}, {in_words(climber.layers)}")
        measured, size = trials.prove(climber.plan)
        speedup = None if min_speedup is None else trials.gain(climber.plan)
        rungs.append(Rung(dict(climber.layers), measured, size, speedup, min_speedup or 0.0))
        if rungs[-1].drifts_not or not climber.go_up(rungs[-1], MAX_RUNGS - len(rungs)):
            return Ladder(rungs, climber.reasons)


@dataclass
class _Climber:
    """Where the ladder stands, and why."""

    trials: Trials
    tell: Tell
    plan: Plan = ALL_ROWWISE
    reasons: dict[str, str] = field(default_factory=dict)
    _alone: dict[tuple[str, Precision], Sequence[Measured]] = field(default_factory=dict)

    @property
    def layers(self) -> dict[str, Precision]:
        return {layer: self.plan.of(layer) for layer in self.trials.layers}

    def leave_what_gains_nothing(self) -> None:
        for layer in self.trials.layers:
            self.tell(f"timing {layer}")
            without = self.plan.moved({layer: Precision.WEIGHTS})
            gain = self.trials.gain(self.plan, without)
            if gain <= 1:
                self._move(layer, Precision.WEIGHTS, f"int8 makes a step no faster: {gain:.2f}")

    def go_up(self, failed: Rung, rungs_left: int) -> bool:
        """Move what must be moved; False: nothing would be left in int8, or no rung is."""
        if rungs_left < 1:
            return False
        if not self._move_hopeless():
            moves = sum(2 - [*Precision].index(p) for p in self.layers.values())
            for _ in range(-(-moves // rungs_left)):
                self._move_worst(failed.faults[0])
                if sum(self._share(*at) for at in self.layers.items()) <= 1:
                    break
        return any(p is not Precision.FLOAT for p in self.layers.values())

    def _move_hopeless(self) -> bool:
        """Each layer that is over the limit alone goes to where it is not."""
        moved = False
        for layer, precision in self.layers.items():
            now = precision
            while self._share(layer, now) > 1:
                now = now.next
            if now is not precision:
                self._move(layer, now, f"quantized, {self._fault(layer, precision)}")
                moved = True
        return moved

    def _move_worst(self, fault: str) -> None:
        """The layer whose move takes away the most drift for its weights, one precision up."""
        relief = {
            layer: self._share(layer, precision) - self._share(layer, precision.next)
            for layer, precision in self.layers.items()
            if precision is not Precision.FLOAT
        }
        if not relief:
            return
        worth = [k for k, v in relief.items() if v >= WORTH_MOVING * max(relief.values())]
        layer = max(worth or relief, key=lambda k: relief[k] / self.trials.layers[k])
        share = self._share(layer, self.layers[layer])
        why = f"quantized, {fault}; alone it takes {share:.0%} of what is allowed"
        self._move(layer, self.layers[layer].next, why)

    def _move(self, layer: str, precision: Precision, why: str) -> None:
        self.plan = self.plan.moved({layer: precision})
        self.reasons[layer] = why

    def _share(self, layer: str, precision: Precision) -> float:
        if precision is Precision.FLOAT:
            return 0.0
        return share_of_limit(self._measured(layer, precision))

    def _fault(self, layer: str, precision: Precision) -> str:
        found = self._measured(layer, precision)
        worst = max(found, key=lambda m: (m.diverges, share_of_limit([m])))
        return "; ".join(worst.faults)

    def _measured(self, layer: str, precision: Precision) -> Sequence[Measured]:
        """With this layer alone quantized."""
        if (layer, precision) not in self._alone:
            self.tell(f"{layer} alone at {precision}")
            plan = Plan({layer: precision}, otherwise=Precision.FLOAT)
            self._alone[layer, precision] = self.trials.probe(plan)
        return self._alone[layer, precision]


def share_of_limit(measured: Sequence[Measured]) -> float:
    """The greatest error as a part of what is allowed; infinite if it is not a number."""
    worst = float(max(np.nan_to_num(m.excess[: m.judged], nan=np.inf).max() for m in measured))
    return worst if all(m.passed for m in measured) else max(worst, OVER)
