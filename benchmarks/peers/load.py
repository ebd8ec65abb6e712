"""The load generator: `python -m benchmarks.peers.load`, a job as JSON in, its figures as JSON out.

Rules
- A process of its own, the same for every contestant. It says how much of a core it took itself.
- Closed loop (no rate): every session asks anew as soon as it is answered.
- Open loop (a rate): questions fall due at fixed times, sessions in turn, whatever the server does.
  A latency runs from the time at which a question was due, not from when it could be sent: a
  server that hangs is charged for all who had to wait ("coordinated omission", Gil Tene, 2013).
- The server's CPU time is read by this process at both ends of the window in which answers are
  counted: user and system time of its processes, and of their children that have ended.
- Rates are of the same seconds. On shared cores they are worth less than CPU time.

The loop waits by select(), whose timeouts are microseconds: epoll's are milliseconds, which would
be most of a latency.
"""

import asyncio
import json
import os
import random
import selectors
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.link import Link, LinkError
from benchmarks.peers.links import LINKS

QUESTIONS = 16  # different ones of each session, asked in turn
GRACE_S = 10.0  # how long what was due in the window is waited for after its end
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Job:
    """What to do."""

    link: str  # a name in LINKS
    path: str
    port: int
    sessions: int
    seconds: float
    warm_s: float
    width: int  # numbers in a row of x
    prefix: str  # of the sessions' names
    pids: list[int] = field(default_factory=list)  # of the server
    rate: float | None = None  # questions a second; None: closed loop


@dataclass(frozen=True)
class Figures:
    """What was found."""

    steps: int  # answered in the window
    seconds: float
    server_cpu_s: float
    client_cpu_s: float
    latencies_ms: list[float]  # open loop: of what was due in the window; else []
    unanswered: int  # open loop: of those, how many had no answer GRACE_S later


def main() -> int:
    job = Job(**json.load(sys.stdin))
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        figures = loop.run_until_complete(Load(job).run())
    except (LinkError, OSError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    json.dump(asdict(figures), sys.stdout)
    return 0


class Load:
    """One job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._links: list[Link] = []
        self._link_of: list[tuple[Link, int]] = []  # of each session, and its place there
        self._questions: list[list[bytes]] = []
        self._firsts: list[bytes] = []
        self._asked = [0] * job.sessions
        self._answers = 0
        self._runs = True
        self._due: list[deque[float]] = [deque() for _ in range(job.sessions)]
        self._window = (float("inf"), float("inf"))  # of times at which questions are due
        self._latencies: list[float] = []
        self._missing = 0  # due in the window and not answered so far

    async def run(self) -> Figures:
        await self._connect()
        troubles = [link.trouble for link in self._links]
        work = asyncio.ensure_future(self._measure())
        either: list[asyncio.Future[Any]] = [work, *troubles]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            reason = next(trouble.result() for trouble in troubles if trouble.done())
            raise LinkError(f"after {self._answers} answers: {reason}")
        self._runs = False
        for link in self._links:
            link.close()
        return work.result()

    async def _connect(self) -> None:
        job = self._job
        names = [f"{job.prefix}-{session}" for session in range(job.sessions)]
        kind = LINKS[job.link]
        groups = (
            [range(job.sessions)] if kind.shared else [range(i, i + 1) for i in range(len(names))]
        )
        loop = asyncio.get_running_loop()
        for group in groups:
            link = kind(job.path, [names[i] for i in group], self._answered_by(group))
            await loop.create_connection(lambda link=link: link, "127.0.0.1", job.port)  # type: ignore[misc]
            await asyncio.wait_for(link.opened, GRACE_S)
            self._links.append(link)
            self._link_of += [(link, place) for place in range(len(group))]
        rng = random.Random(job.prefix)
        for link, place in self._link_of:
            rows = [[rng.uniform(-1, 1) for _ in range(job.width)] for _ in range(QUESTIONS)]
            self._questions.append([link.question(place, x, is_first=False) for x in rows])
            self._firsts.append(link.question(place, rows[0], is_first=True))

    def _answered_by(self, group: range) -> "Answer":
        return Answer(self, group.start)

    async def _measure(self) -> Figures:
        job = self._job
        ticker = None
        if job.rate is None:
            for session in range(job.sessions):
                self._ask(session)
            self._flush()
        else:
            ticker = asyncio.ensure_future(self._tick(job.rate))
        await asyncio.sleep(job.warm_s)
        start, cpu, own, answers = self._now()
        self._window = (start, start + job.seconds)
        await asyncio.sleep(job.seconds)
        end, cpu_after, own_after, answers_after = self._now()
        deadline = end + GRACE_S
        while self._missing and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        if ticker is not None:
            ticker.cancel()
        return Figures(
            steps=answers_after - answers,
            seconds=end - start,
            server_cpu_s=cpu_after - cpu,
            client_cpu_s=own_after - own,
            latencies_ms=[round(latency * 1e3, 4) for latency in self._latencies],
            unanswered=self._missing,
        )

    def _now(self) -> tuple[float, float, float, int]:
        cpu = cpu_seconds(self._job.pids)
        return time.perf_counter(), cpu, time.process_time(), self._answers

    def _ask(self, session: int) -> None:
        link, place = self._link_of[session]
        asked = self._asked[session]
        self._asked[session] += 1
        questions = self._questions[session]
        link.ask(place, questions[asked % QUESTIONS] if asked else self._firsts[session])

    def _flush(self) -> None:
        for link in self._links:
            link.flush()

    def answered(self, session: int) -> None:
        self._answers += 1
        if self._job.rate is None:
            if self._runs:
                self._ask(session)
            return
        due = self._due[session]
        if self._is_counted(since := due.popleft()):
            self._latencies.append(time.perf_counter() - since)
            self._missing -= 1
        if due:
            self._ask(session)

    def _is_counted(self, due: float) -> bool:
        return self._window[0] <= due < self._window[1]

    async def _tick(self, rate: float) -> None:
        begin, number = time.perf_counter(), 0
        while True:
            now = time.perf_counter()
            while (due := begin + number / rate) <= now:
                session = number % self._job.sessions
                number += 1
                self._missing += self._is_counted(due)
                self._due[session].append(due)
                if len(self._due[session]) == 1:
                    self._ask(session)
            self._flush()
            await asyncio.sleep(due - now)


@dataclass(frozen=True)
class Answer:
    """What a link calls: its places are the sessions from `first` on."""

    load: Load
    first: int

    def __call__(self, place: int, body: bytes) -> None:
        self.load.answered(self.first + place)


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of the processes and of their children that have ended.

    Raises:
        OSError: one of them is gone.
    """
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
    return ticks / TICK


if __name__ == "__main__":
    sys.exit(main())
