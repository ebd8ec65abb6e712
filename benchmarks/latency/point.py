"""What was measured, the same for every part of the run.

Rules
- A cell is what is measured in turns: one model, so many rows, so many steps. Ratios are of one
  round in one cell, and the median over the rounds is told.
- Wall-clock times are what a user waits for, and of the day. CPU time is the steady figure.
- JSON: {"conditions": {...}, "models": [Model], "points": [Point], "absent": {who: why},
  "advice": [sentence]}, keys as the fields here.
"""

from dataclasses import dataclass, field

IN_PROCESS, WIRE = "in process", "wire"  # the parts


@dataclass(frozen=True)
class Model:
    """A model that is measured, and what a step of it costs by its size."""

    name: str
    kind: str  # lstm or gru; empty: unknown
    input_size: int
    hidden: int  # 0: unknown
    layers: int
    is_made: bool  # for the purpose, from a seed; False: the user's


@dataclass(frozen=True)
class Point:
    """One contestant in one cell."""

    part: str
    model: str
    contestant: str  # in process a variant, a peer or a floor; over the wire a way to ask
    rows: int  # of a call, each of another sequence; over the wire: the sessions that ask
    steps: int  # of each row, in a call or request
    calls: int  # or requests, whose latencies count
    p50_us: float  # of a call or request
    p90_us: float
    p99_us: float
    steps_per_s: float  # of all rows together
    cpu_us: float  # of one step of one row; over the wire of the server's process tree
    baseline: str | None = None  # the contestant of this cell that `ratio` is to
    ratio: float | None = None  # of cpu_us
    store: str = ""  # over the wire: disk, memory
    asked_per_s: float | None = None  # steps: an open loop's rate; None: a closed loop


@dataclass
class Findings:
    """All that was found."""

    models: list[Model] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)  # who could not take part -> why

    def add_absent(self, who: str, model: str, why: str) -> None:
        """One entry for all models from which `who` is absent for this reason."""
        for key, known in self.absent.items():
            if known == why and key.startswith(f"{who}: "):
                del self.absent[key]
                self.absent[f"{key}, {model}"] = why
                return
        self.absent[f"{who}: {model}"] = why
