"""A server asked in one way by some sessions: a closed loop, then open loops at fixed rates.

The rates are shares of what the closed loop has just reached, or questions a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.wire.carousel import Way
from benchmarks.wire.job import Figures, Job, run_load
from benchmarks.wire.servers import Server


@dataclass(frozen=True)
class Times:
    """How long is measured, in seconds."""

    warm_s: float
    closed_s: float
    open_s: float


@dataclass(frozen=True)
class Latency:
    """Of questions that fall due at a fixed rate, from when each was due."""

    rate: float  # due, a second
    cpu_us: float  # of the server, for a step
    p50_ms: float
    p90_ms: float
    p99_ms: float
    calls: int  # of which those are
    unanswered: int  # of those, after ten seconds

    @property
    def tail(self) -> float:
        """p99 over p50."""
        return self.p99_ms / self.p50_ms


@dataclass(frozen=True)
class Asked:
    """One way, one number of sessions."""

    sessions: int
    cpu_us: float  # of the server, for a step; as all but `latencies` in the closed loop
    steps_per_s: float
    client_share: float  # of a core, by the load generator
    p50_ms: float  # from when it was asked
    p90_ms: float
    p99_ms: float
    calls: int  # of which those are
    latencies: tuple[Latency, ...] = ()  # in the order of the rates


def ask(
    server: Server,
    way: Way,
    width: int,
    prefix: str,
    sessions: int,
    times: Times,
    *,
    shares: Sequence[float] = (),
    rates: Sequence[float] = (),
) -> Asked:
    """Ask it.

    Args:
        width: numbers in a row of x.
        prefix: of the sessions' names; of others in each call.
        shares: of the closed loop's rate: an open loop for each.
        rates: questions a second: an open loop for each, after those.
    Raises:
        LinkError: it does not answer, or not as it should.
    """
    job = Job(
        link=way.link,
        path=way.path,
        port=way.port_of(server),
        sessions=sessions,
        seconds=times.closed_s,
        warm_s=times.warm_s,
        width=width,
        prefix=prefix,
        pids=server.pids(),
        connections=way.connections,
        together=min(way.together, sessions),
    )
    closed = run_load(job)
    latencies = []
    for number, rate in enumerate([*(share * closed.steps_per_s for share in shares), *rates]):
        fixed = replace(job, rate=rate, seconds=times.open_s, prefix=f"{prefix}-open-{number}")
        latencies.append(_latency(run_load(fixed), rate))
    p50, p90, p99 = closed.percentiles(50, 90, 99)
    return Asked(
        sessions,
        closed.cpu_us,
        closed.steps_per_s,
        closed.client_share,
        p50,
        p90,
        p99,
        len(closed.latencies_ms),
        tuple(latencies),
    )


def _latency(figures: Figures, rate: float) -> Latency:
    p50, p90, p99 = figures.percentiles(50, 90, 99)
    calls = len(figures.latencies_ms) + figures.unanswered
    return Latency(rate, figures.cpu_us, p50, p90, p99, calls, figures.unanswered)
