"""What was aimed at, and what was measured: met, or missed by how much.

Every figure is of one round: a ratio of two CPU times, rates or latencies of the same minute. What
is judged is the median over the rounds; the smallest and greatest stand beside it. A target whose
servers were not all measured has no verdict.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.peers.contestants import (
    BASELINE,
    CAROUSEL,
    CAROUSEL_WAYS,
    NAIVE,
    ONE_WORKER,
    TWO_WORKERS,
    WORKER_WAYS,
)
from benchmarks.peers.measure import Point, ratios_to
from benchmarks.wire.carousel import (
    A_FRAME,
    NDJSON,
    UNARY,
    V2,
    V2_BINARY,
    WS_BINARY,
    WS_FRAME,
    WS_TEXT,
)

UNARY_LIMIT = 1.25
NAIVE_LIMIT = 1 / 5
STREAM_LIMIT = 1 / 20
STREAM_SESSIONS = 64
FRAME_LIMIT = 1 / 60
TAIL_LIMIT = 5.0
SAME = 1.05  # "not slower": two rounds of one server differ by as much


@dataclass(frozen=True)
class Verdict:
    """One target."""

    way: str
    sessions: int
    what: str  # is compared with what
    limit: float  # at most; of a rate that should not fall: at least
    at_least: bool
    median: float
    smallest: float
    greatest: float

    @property
    def missed_by(self) -> float:
        """How many times too much, or too little; at most 1 where it is met."""
        return self.limit / self.median if self.at_least else self.median / self.limit

    @property
    def is_met(self) -> bool:
        return self.missed_by <= 1

    def __str__(self) -> str:
        return "met" if self.is_met else f"missed by {self.missed_by - 1:.0%}"


def judge(points: Sequence[Point]) -> list[Verdict]:
    """Every target that the points say something about."""
    return [*_unary(points), *_streams(points), *_tails(points), *_workers(points)]


def _unary(points: Sequence[Point]) -> Iterator[Verdict]:
    for other, limit in ((BASELINE, UNARY_LIMIT), (NAIVE, NAIVE_LIMIT)):
        for sessions, some in _by_sessions(points, CAROUSEL, UNARY).items():
            ratios = ratios_to(points, some, other)
            yield from _judged(UNARY, sessions, _cpu_to(other), limit, ratios)


def _streams(points: Sequence[Point]) -> Iterator[Verdict]:
    wanted = [(way, STREAM_SESSIONS, STREAM_LIMIT) for way in (NDJSON, WS_TEXT, WS_BINARY)]
    for way, sessions, limit in [*wanted, (WS_FRAME, A_FRAME, FRAME_LIMIT)]:
        some = _by_sessions(points, CAROUSEL, way).get(sessions, [])
        ratios = ratios_to(points, some, BASELINE)
        yield from _judged(way, sessions, _cpu_to(BASELINE), limit, ratios)


def _tails(points: Sequence[Point]) -> Iterator[Verdict]:
    for way in CAROUSEL_WAYS:
        if way in (V2, V2_BINARY):
            continue  # as unary
        for sessions, some in _by_sessions(points, CAROUSEL, way).items():
            tails = [point.tail for point in some if point.tail is not None]
            yield from _judged(way, sessions, "p99 / p50 at half load", TAIL_LIMIT, tails)


def _workers(points: Sequence[Point]) -> Iterator[Verdict]:
    for way in WORKER_WAYS:
        one, two = (_by_sessions(points, who, way) for who in (ONE_WORKER, TWO_WORKERS))
        if not one or not two:
            continue
        most = max(two)
        pair = two[most], one.get(most, [])
        cpu = _ratios(*pair, lambda point: point.asked.cpu_us)
        yield from _judged(way, most, "CPU, two workers / one", SAME, cpu)
        rates = _ratios(*pair, lambda point: point.asked.steps_per_s)
        yield from _judged(way, most, "steps/s, two workers / one", 1 / SAME, rates, at_least=True)


def _cpu_to(other: str) -> str:
    return f"CPU / {other}'s unary"


def _judged(
    way: str,
    sessions: int,
    what: str,
    limit: float,
    measured: Sequence[float],
    *,
    at_least: bool = False,
) -> Iterator[Verdict]:
    if measured:
        span = median(measured), min(measured), max(measured)
        yield Verdict(way, sessions, what, limit, at_least, *span)


def _by_sessions(points: Sequence[Point], contestant: str, way: str) -> dict[int, list[Point]]:
    found: dict[int, list[Point]] = {}
    for point in points:
        if (point.contestant, point.way) == (contestant, way):
            found.setdefault(point.asked.sessions, []).append(point)
    return found


def _ratios(
    some: Sequence[Point], others: Sequence[Point], figure: Callable[[Point], float]
) -> list[float]:
    """The ratio of the figure in each round that both have."""
    base = {point.round: figure(point) for point in others}
    return [figure(point) / base[point.round] for point in some if point.round in base]
