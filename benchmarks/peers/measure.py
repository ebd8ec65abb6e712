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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.peers.checks import Killed, crowd, retry, share
from benchmarks.peers.contestants import Contestant
from benchmarks.peers.stage import Stage
from benchmarks.peers.venvs import VenvError
from benchmarks.wire.agreement import agree
from benchmarks.wire.asked import Asked, Times, ask
from benchmarks.wire.carousel import UNARY, Way
from benchmarks.wire.link import LinkError
from benchmarks.wire.network import WIDTH, Loop
from benchmarks.wire.servers import Server, ServerError

Tell = Callable[[str], None]
HALF = 0.5  # of saturation: the rate at which latencies are looked at


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    sessions: tuple[int, ...]
    times: Times
    connections: int  # of the check that shares a session
    requests: int  # by each of them
    killed_sessions: int
    kill_after_s: float


@dataclass(frozen=True)
class Point:
    """One contestant, asked in one way by some sessions, in one round."""

    contestant: str
    way: str
    round: int
    asked: Asked

    @property
    def tail(self) -> float | None:
        """p99 over p50 at half of saturation, where that was looked at."""
        return self.asked.latencies[0].tail if self.asked.latencies else None


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
                    asyncio.run(agree(way, server, self._loop, prefix))
                    self.findings.points += self._points(contestant, name, way, server, number)
                except (LinkError, OSError, TimeoutError) as error:
                    self.findings.troubles[key] = str(error)
        finally:
            server.stop()

    def _points(
        self, contestant: Contestant, name: str, way: Way, server: Server, number: int
    ) -> Iterator[Point]:
        plan, most = self._plan, max(self._plan.sessions)
        counts = plan.sessions
        if way.together > 1:
            counts = (way.together,)
        elif way.connections > 1:
            counts = (most,)
        for sessions in counts:
            shares = [HALF] if sessions >= most else []
            prefix = f"{name.replace(' ', '-').replace(',', '')}-{number}-{sessions}"
            asked = ask(server, way, WIDTH, prefix, sessions, plan.times, shares=shares)
            yield Point(contestant.name, name, number, asked)

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
    p50_ms: float | None  # at half of saturation
    p99_ms: float | None
    client_share: float


def summarise(points: Sequence[Point], baseline: str) -> list[Row]:
    """One row for each contestant, way and number of sessions, in the order of the points."""
    groups: dict[tuple[str, str, int], list[Point]] = {}
    for point in points:
        groups.setdefault((point.contestant, point.way, point.asked.sessions), []).append(point)
    rows = []
    for (contestant, way, sessions), some in groups.items():
        asked = [point.asked for point in some]
        ratios = ratios_to(points, some, baseline)
        latencies = [one.latencies[0] for one in asked if one.latencies]
        rows.append(
            Row(
                contestant,
                way,
                sessions,
                median(one.cpu_us for one in asked),
                median(ratios) if ratios else None,
                median(one.steps_per_s for one in asked),
                median(one.p50_ms for one in latencies) if latencies else None,
                median(one.p99_ms for one in latencies) if latencies else None,
                median(one.client_share for one in asked),
            )
        )
    return rows


def ratios_to(points: Sequence[Point], some: Sequence[Point], baseline: str) -> list[float]:
    """Of the CPU time of `some` to the baseline's unary way in the same round.

    By as many sessions; where the baseline was not asked by as many, by the most that it was.
    """
    base: dict[int, dict[int, float]] = {}  # round -> sessions -> us
    for point in points:
        if point.contestant == baseline and point.way == UNARY:
            base.setdefault(point.round, {})[point.asked.sessions] = point.asked.cpu_us
    return [
        point.asked.cpu_us / same.get(point.asked.sessions, same[max(same)])
        for point in some
        if (same := base.get(point.round))
    ]
