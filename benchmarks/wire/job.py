"""What a load generator is to do, and what it found: JSON to and from a process of its own."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field

from benchmarks import ROOT
from benchmarks.wire.link import LinkError

LOAD_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Job:
    """What to do."""

    link: str  # a name in links.LINKS
    path: str
    port: int
    sessions: int
    seconds: float  # a closed loop may take longer, see `load`
    warm_s: float
    width: int  # numbers in a row of x
    prefix: str  # of the sessions' names
    pids: list[int] = field(default_factory=list)  # of the server
    rate: float | None = None  # questions a second; None: closed loop
    connections: int = 1  # of a link that many sessions share
    together: int = 1  # sessions that ask at one time: the next time when all of them are answered


@dataclass(frozen=True)
class Figures:
    """What was found."""

    steps: int  # answered in the window
    seconds: float
    server_cpu_s: float
    client_cpu_s: float
    latencies_ms: list[float]  # of what was asked (open loop: was due) in the window
    unanswered: int  # open loop: of what was due, how many had no answer GRACE_S later

    @property
    def cpu_us(self) -> float:
        """Of the server, for a step; 0 if its processes were not named."""
        return self.server_cpu_s / self.steps * 1e6

    @property
    def steps_per_s(self) -> float:
        return self.steps / self.seconds

    @property
    def client_share(self) -> float:
        """Of a core, by the load generator."""
        return self.client_cpu_s / self.seconds

    def percentiles(self, *percents: float) -> list[float]:
        """In ms; what had no answer at all counts as infinitely late. NaN where nothing was asked.

        Each is a latency that was measured: the smallest with at least that share at or below it.
        """
        late = sorted([*self.latencies_ms, *[float("inf")] * self.unanswered])
        if not late:
            return [float("nan")] * len(percents)
        places = [-int(-percent * len(late) // 100) - 1 for percent in percents]
        return [late[max(place, 0)] for place in places]


def run_load(job: Job) -> Figures:
    """The job in a process of its own; LinkError with what it says if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.wire.load"],
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
        raise LinkError(f"nothing was answered within {figures.seconds:.1f} s")
    return figures
