"""All that one run found, as JSON and back."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from benchmarks.scaling.in_process import Point
from benchmarks.scaling.models import Sized
from benchmarks.scaling.redis_side import RedisPoint
from benchmarks.scaling.served import StartUp, WayPoint, WireBytes
from benchmarks.scaling.upkeep import Upkeep

MEASURED = Path(__file__).parents[2] / "docs" / "scaling.json"  # the run that the docs are of


@dataclass(frozen=True)
class Held:
    """What each of so many sleepers takes."""

    asleep: int
    state_bytes: int
    disk_bytes: float
    memory_bytes: float  # mapped files; all workers share them


@dataclass(frozen=True)
class Imported:
    """CPU time of a new Python that imports something, the least of several."""

    what: str
    cpu_s: float


@dataclass
class Findings:
    """One list for each thing that was measured."""

    conditions: dict[str, object] = field(default_factory=dict)
    models: list[Sized] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    upkeep: list[Upkeep] = field(default_factory=list)
    ways: list[WayPoint] = field(default_factory=list)
    wire: list[WireBytes] = field(default_factory=list)
    redis: list[RedisPoint] = field(default_factory=list)
    starts: list[StartUp] = field(default_factory=list)
    imports: list[Imported] = field(default_factory=list)

    def keep(self, earlier: "Findings") -> None:
        """Take over what this run did not measure."""
        for one in fields(self):
            if not getattr(self, one.name):
                setattr(self, one.name, getattr(earlier, one.name))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


_KINDS = {
    "models": Sized,
    "held": Held,
    "points": Point,
    "upkeep": Upkeep,
    "ways": WayPoint,
    "wire": WireBytes,
    "redis": RedisPoint,
    "starts": StartUp,
    "imports": Imported,
}


def read_findings(path: Path) -> Findings:
    raw = json.loads(path.read_text())
    lists = {
        one.name: [_KINDS[one.name](**entry) for entry in raw[one.name]]
        for one in fields(Findings)
        if one.name in _KINDS
    }
    return Findings(conditions=raw["conditions"], **lists)
