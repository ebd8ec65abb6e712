"""What a part of the run is asked."""

from collections.abc import Callable
from typing import Protocol

from benchmarks.latency.point import Findings

Tell = Callable[[str], None]  # told what begins, `Part.turns` times in all


class Part(Protocol):
    """In process, or over the wire."""

    @property
    def turns(self) -> int:
        """How often it will tell: the length of the progress bar."""
        ...

    def measure(self, findings: Findings, tell: Tell) -> None:
        """Measure, and add what was found: models that are new, points, who is absent and why."""
        ...
