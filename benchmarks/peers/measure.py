"""The rounds: contestants in turn, each started anew, asked, and stopped.

Rules
- One contestant runs at a time; round after round, each round in another order, so that a machine
  that slows down slows all of them.
- In a round each way is asked by every number of sessions in a closed loop, then, by the most of
  them, in an open loop at half of the rate that it has just reached.
- Ratios are of one round: a figure to the baseline's in the same round, by as many sessions. What
  is shown is the median over the rounds.
- A way that is not offered, or does not give the model's y, has its reason in place of figures.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

import numpy as np

from benchmarks.peers.checks import Killed, agree, crowd, retry, share
from benchmarks.peers.contestants import Contestant, Way
from benchmarks.peers.link import LinkError
from benchmarks.peers.load import Figures, Job
from benchmarks.peers.network import ROOT, WIDTH, Loop
from benchmarks.peers.servers import Server, ServerError
from benchmarks.peers.stage import Stage
from benchmarks.peers.venvs import VenvError

Tell = Callable[[str], None]
LOAD_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    sessions: tuple[int, ...]
    seconds: float  # of each closed loop
    open_seconds: float  # of each open loop
    warm_s: float
    connections: int  # of the check that shares a session
    requests: int  # by each of them
    killed_sessions: int
    kill_after_s: float


@dataclass(frozen=True)
class Point:
    """One contestant, asked in one way by some sessions, in one round."""

    contestant: str
    way: str
    sessions: int
    round: int
    cpu_us: float  # of the server, for a step
    steps_per_s: float
    client_share: float  # of a core, by the load generator
    p50_ms: float | None = None  # open loop at half of that rate
    p99_ms: float | None = None
    open_rate: float | None = None
    unanswered: int = 0


@dataclass(frozen=True)
class Losses:
    """What the checks found, in words."""

    contestant: str
    shared: str
    retried: str
    killed: str
    neighbours: str


@dataclass
class Findings:
    """All that was found."""

    points: list[Point] = field(default_factory=list)
    losses: list[Losses] = field(default_factory=list)
    troubles: dict[str, str] = field(default_factory=dict)  # "contestant" or "contestant, way"
    versions: dict[str, dict[str, str]] = field(default_factory=dict)


class Run:
    """One run of the comparison."""

    def __init__(
        self,
        stage: Stage,
        loop: Loop,
        plan: Plan,
        contestants: Sequence[Contestant],
        ways: Sequence[str],
        tell: Tell,
    ) -> None:
        """
        Args:
            ways: of those that a contestant has, which are measured.
            tell: is called with a line for each thing that begins.
        """
        self._stage, self._loop, self._plan, self._tell = stage, loop, plan, tell
        self._contestants = list(contestants)
        self._ways = list(ways)
        self.findings = Findings()

    def install(self) -> None:
        """Make the environments; who cannot be had here takes no part."""
        for contestant in list(self._contestants):
            self._tell(f"{contestant.name}: its environment")
            try:
                self._stage.bin_of(contestant)
            except VenvError as error:
                self._drop(contestant, error)

    @property
    def turns(self) -> int:
        """How often `measure` calls `tell`."""
        return self._plan.rounds * len(self._contestants)

    def measure(self) -> None:
        """All rounds."""
        for number in range(self._plan.rounds):
            order = self._contestants[number:] + self._contestants[:number]
            for contestant in order:
                self._tell(f"round {number + 1}: {contestant.name}")
                try:
                    self._turn(contestant, number)
                except ServerError as error:
                    self._drop(contestant, error)

    def check(self) -> None:
        """Who loses what."""
        for contestant in self._contestants:
            self._tell(f"what does {contestant.name} lose")
            try:
                self.findings.losses.append(self._losses(contestant))
            except (ServerError, LinkError, OSError) as error:
                self.findings.troubles[f"{contestant.name}, checks"] = str(error)

    def _drop(self, contestant: Contestant, error: Exception) -> None:
        self.findings.troubles[contestant.name] = str(error)
        self._contestants = [other for other in self._contestants if other is not contestant]

    def _turn(self, contestant: Contestant, number: int) -> None:
        server = self._stage.start(contestant)
        try:
            for name, way in contestant.ways.items():
                key = f"{contestant.name}, {name}"
                if name not in self._ways or key in self.findings.troubles:
                    continue
                prefix = f"agree-{name.replace(' ', '-')}"
                try:
                    asyncio.run(agree(way, server.port, self._loop, prefix))
                    self.findings.points += self._points(contestant, name, way, server, number)
                except (LinkError, OSError, TimeoutError) as error:
                    self.findings.troubles[key] = str(error)
        finally:
            server.stop()

    def _points(
        self, contestant: Contestant, name: str, way: Way, server: Server, number: int
    ) -> Iterator[Point]:
        plan = self._plan
        for sessions in plan.sessions:
            prefix = f"{name.replace(' ', '-')}-{number}-{sessions}"
            job = Job(
                link=way.link,
                path=way.path,
                port=server.port,
                sessions=sessions,
                seconds=plan.seconds,
                warm_s=plan.warm_s,
                width=WIDTH,
                prefix=prefix,
                pids=server.pids(),
            )
            closed = run_load(job)
            point = Point(
                contestant.name,
                name,
                sessions,
                number,
                cpu_us=closed.server_cpu_s / closed.steps * 1e6,
                steps_per_s=closed.steps / closed.seconds,
                client_share=closed.client_cpu_s / closed.seconds,
            )
            if sessions == max(plan.sessions) and plan.open_seconds:
                rate = point.steps_per_s / 2
                fixed = asdict(job) | {
                    "rate": rate,
                    "seconds": plan.open_seconds,
                    "prefix": prefix + "-open",
                    "pids": [],
                }
                point = _with_latency(point, run_load(Job(**fixed)), rate)
            yield point

    def _losses(self, contestant: Contestant) -> Losses:
        plan, loop, way = self._plan, self._loop, contestant.unary
        folder = self._stage.folder_for(contestant)
        server = self._stage.start(contestant, folder)
        try:
            shared = asyncio.run(
                share(way, server.port, loop, "shared", plan.connections, plan.requests)
            )
            times = asyncio.run(
                retry(way, server.port, loop, "retried", says_step=contestant.says_step)
            )
            near = asyncio.run(crowd(way, server.port, loop, "crowd", plan.connections))
            killed = Killed(way, server.port, loop, "killed", plan.killed_sessions)
            asyncio.run(killed.load(server.kill, plan.kill_after_s))
        finally:
            server.kill()
        server = self._stage.start(contestant, folder, server.port)
        try:
            lost = asyncio.run(killed.lost())
        finally:
            server.stop()
        return Losses(
            contestant.name,
            shared=str(shared),
            retried=times,
            killed=f"{lost} of {len(killed.begun)}",
            neighbours=str(near),
        )


def run_load(job: Job) -> Figures:
    """The job in a process of its own; LinkError with what it says if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.load"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=LOAD_TIMEOUT_S + job.seconds,
    )
    if done.returncode:
        raise LinkError(done.stderr.strip()[-600:])
    figures = Figures(**json.loads(done.stdout))
    if not figures.steps:
        raise LinkError(f"nothing was answered within {job.seconds} s")
    return figures


def _with_latency(point: Point, figures: Figures, rate: float) -> Point:
    """What had no answer at all counts as infinitely late."""
    late = [*figures.latencies_ms, *[float("inf")] * figures.unanswered]
    p50, p99 = np.percentile(late, [50, 99], method="higher") if late else (None, None)
    return Point(
        **asdict(point)
        | {
            "p50_ms": None if p50 is None else float(p50),
            "p99_ms": None if p99 is None else float(p99),
            "open_rate": rate,
            "unanswered": figures.unanswered,
        }
    )


# Over the rounds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """The medians of one contestant, way and number of sessions."""

    contestant: str
    way: str
    sessions: int
    cpu_us: float
    ratio: float | None  # of cpu_us to the baseline's unary way, in the same round
    steps_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    client_share: float


def summarise(points: Sequence[Point], baseline: str) -> list[Row]:
    """One row for each contestant, way and number of sessions, in the order of the points."""
    base = {
        (point.round, point.sessions): point.cpu_us
        for point in points
        if point.contestant == baseline and point.way == "unary"
    }
    groups: dict[tuple[str, str, int], list[Point]] = {}
    for point in points:
        groups.setdefault((point.contestant, point.way, point.sessions), []).append(point)
    rows = []
    for (contestant, way, sessions), some in groups.items():
        ratios = [p.cpu_us / base[at] for p in some if (at := (p.round, p.sessions)) in base]
        rows.append(
            Row(
                contestant,
                way,
                sessions,
                median(point.cpu_us for point in some),
                median(ratios) if ratios else None,
                median(point.steps_per_s for point in some),
                _median(point.p50_ms for point in some),
                _median(point.p99_ms for point in some),
                median(point.client_share for point in some),
            )
        )
    return rows


def _median(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
