"""All that one export measured: what the report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from export.gate_errors import GateError
from export.isolation import Isolation
from export.measured import Measured
from export.timing import Timing
from service.manifest import Manifest

NOT_WRITTEN = "not written"  # the road of a variant that was left out


class Rung(Protocol):
    """One plan of quantization that was tried."""

    @property
    def plan(self) -> str:
        """What was int8 and what float, in words."""
        ...

    @property
    def max_error(self) -> float: ...

    @property
    def speedup(self) -> float | None:
        """The float step's time by this one's; None: not timed."""
        ...

    @property
    def verdict(self) -> str:
        """Taken, or why not."""
        ...

    def as_json(self) -> dict[str, object]:
        """As it stands in parity.json."""
        ...


@dataclass(frozen=True)
class Evidence:
    """What was found of every variant; what was not measured is empty."""

    manifest: Manifest
    measured: Sequence[Measured]  # of the variants that were written
    rejected: Sequence[Measured] = ()  # of those that drifted and were left out
    isolation: Mapping[str, Isolation] = field(default_factory=dict)
    gates: Sequence[GateError] = ()
    timing: Timing | None = None
    ladder: Sequence[Rung] = ()

    @property
    def left_out(self) -> dict[str, str]:
        """Variant -> why it was not written."""
        return {x.layer: x.why for x in self.manifest.lowering if x.road == NOT_WRITTEN}

    @property
    def cases(self) -> list[str]:
        return list(dict.fromkeys(m.case.name for m in self.measured))

    def of_case(self, case: str) -> list[Measured]:
        """Every variant's, those left out too."""
        return [m for m in (*self.measured, *self.rejected) if m.case.name == case]

    def worst_of(self, variant: str) -> Measured:
        """The case in which it errs most."""
        found = [m for m in self.measured if m.variant == variant]
        return max(found, key=lambda m: m.max_error)

    def size_of(self, variant: str) -> int:
        """Bytes of its files."""
        entry = next(v for name, v in self.manifest.variants.items() if name == variant)
        return entry.size + (entry.step.size if entry.step else 0)

    @property
    def baseline(self) -> str:
        """The variant that sizes and times are ratios to."""
        names = list(self.manifest.variants)
        return "onnx-fp32" if "onnx-fp32" in names else names[0]
