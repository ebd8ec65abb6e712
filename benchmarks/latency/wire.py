"""The part from socket to socket: a real `bentoml serve` of each model, asked in every way.

Rules
- One server runs at a time, started anew for each store in each round, in another order each round.
- Each way is first asked whether its y is the model's. Then so many sessions ask in a closed loop,
  which gives the steps per second and the server's CPU time of a step; then in open loops at fixed
  rates, whose latencies run from when a step was due (`benchmarks.wire.load` has the rules).
- Ratios are CPU times to the unary way's in the same round, of as many sessions, in the same store.
"""

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.latency.in_process import model_of
from benchmarks.latency.made import Size, make
from benchmarks.latency.part import Tell
from benchmarks.latency.point import WIRE, Findings, Model, Point
from benchmarks.wire import carousel
from benchmarks.wire.agreement import ArtifactLoop, agree
from benchmarks.wire.asked import Asked, Latency, Times, ask
from benchmarks.wire.carousel import UNARY, V2, V2_BINARY
from benchmarks.wire.link import LinkError
from benchmarks.wire.servers import ServerError
from service.artifact import Artifact

STORES = ("disk", "memory")
WAYS = tuple(carousel.ways(""))
USUAL_WAYS = tuple(way for way in WAYS if way not in (V2, V2_BINARY))  # tritonclient's are of v2
HALF = 0.5  # of saturation
TROUBLES = (LinkError, OSError, TimeoutError)


@dataclass(frozen=True)
class Plan:
    """What is asked, and for how long."""

    sizes: Sequence[Size]  # of made models
    artifacts: Sequence[Artifact]  # the user's
    ways: Sequence[str]  # of WAYS
    sessions: Sequence[int]
    stores: Sequence[str]  # of STORES
    shares: Sequence[float]  # of the closed loop's rate: an open loop for each
    rates: Sequence[float]  # steps a second: an open loop for each
    rounds: int
    times: Times
    cache: Path  # of made models


@dataclass
class Cell:
    """A model, a way, so many sessions and a store: a figure of each round, by its number."""

    model: str
    way: str
    sessions: int
    store: str
    asked: dict[int, Asked] = field(default_factory=dict)


Cells = dict[tuple[str, str, int, str], Cell]


class Wire:
    """As `Part` asks."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def turns(self) -> int:
        plan = self._plan
        served = len(plan.artifacts) + len(plan.sizes)
        a_server = 1 + len(plan.ways) * len(plan.sessions)
        return served * len(plan.stores) * plan.rounds * a_server

    def measure(self, findings: Findings, tell: Tell) -> None:
        """
        Raises:
            ExportError: a made model could not be exported.
        """
        plan = self._plan
        found = {size.model: make(plan.cache, size) for size in plan.sizes}
        found |= {model_of(artifact): artifact for artifact in plan.artifacts}
        cells: Cells = {}
        for model, artifact in found.items():
            if model.name not in {known.name for known in findings.models}:
                findings.models.append(model)
            x = artifact.manifest.ports.x
            if len(x.shape) != 3 or not x.dtype.startswith("float"):
                why = f"x is {x.dtype} {x.shape}, here rows of numbers are sent"
                findings.add_absent("over the wire", model.name, why)
                continue
            for number in range(plan.rounds):
                first = number % len(plan.stores)
                for store in [*plan.stores[first:], *plan.stores[:first]]:
                    self._serve(model, artifact, store, number, cells, findings, tell)
        findings.points += points_of(cells)

    def _serve(
        self,
        model: Model,
        artifact: Artifact,
        store: str,
        number: int,
        cells: Cells,
        findings: Findings,
        tell: Tell,
    ) -> None:
        plan, loop = self._plan, ArtifactLoop(artifact)
        tell(f"{model.name}, {store}: the server starts")
        with tempfile.TemporaryDirectory(prefix="wire-") as folder:
            try:
                server = carousel.start(
                    Path(folder), artifact.path, loop.width, {"CAROUSEL_STORE": store}
                )
            except ServerError as error:
                findings.add_absent(f"store {store}, over the wire", model.name, str(error))
                return
            try:
                for name, way in carousel.ways(model.name).items():
                    if name not in plan.ways:
                        continue
                    label = name.replace(" ", "-").replace(",", "")
                    try:
                        asyncio.run(agree(way, server, loop, f"agree-{label}"))
                        for sessions in plan.sessions:
                            tell(f"{model.name}, {store}: {name}, {sessions} sessions")
                            asked = ask(
                                server,
                                way,
                                loop.width,
                                f"{label}-{sessions}",
                                sessions,
                                plan.times,
                                shares=plan.shares,
                                rates=plan.rates,
                            )
                            key = (model.name, name, sessions, store)
                            cells.setdefault(key, Cell(*key)).asked[number] = asked
                    except TROUBLES as error:
                        findings.add_absent(f"{name}, store {store}", model.name, str(error))
            finally:
                server.stop()


def points_of(cells: Mapping[tuple[str, str, int, str], Cell]) -> Iterator[Point]:
    """Of each cell its closed loop, then its open loops; medians over the rounds."""
    for (model, _, sessions, store), cell in cells.items():
        asked = list(cell.asked.values())
        unary = cells.get((model, UNARY, sessions, store))
        ratios = [
            one.cpu_us / unary.asked[number].cpu_us
            for number, one in cell.asked.items()
            if unary and number in unary.asked
        ]
        yield _point(
            cell,
            asked,
            steps_per_s=median(one.steps_per_s for one in asked),
            baseline=UNARY if ratios else None,
            ratio=median(ratios) if ratios else None,
        )
        for number in range(len(asked[0].latencies)):
            latencies = [one.latencies[number] for one in asked]
            rate = median(one.rate for one in latencies)
            yield _point(cell, latencies, steps_per_s=rate, asked_per_s=rate)


def _point(
    cell: Cell,
    found: Sequence[Asked] | Sequence[Latency],
    *,
    steps_per_s: float,
    baseline: str | None = None,
    ratio: float | None = None,
    asked_per_s: float | None = None,
) -> Point:
    def us(percentile: Callable[[Asked | Latency], float]) -> float:
        return median(percentile(one) for one in found) * 1e3

    return Point(
        part=WIRE,
        model=cell.model,
        contestant=cell.way,
        rows=cell.sessions,
        steps=1,
        calls=sum(one.calls for one in found),
        p50_us=us(lambda one: one.p50_ms),
        p90_us=us(lambda one: one.p90_ms),
        p99_us=us(lambda one: one.p99_ms),
        steps_per_s=steps_per_s,
        cpu_us=median(one.cpu_us for one in found),
        baseline=baseline,
        ratio=ratio,
        store=cell.store,
        asked_per_s=asked_per_s,
    )
