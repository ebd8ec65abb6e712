"""The load generator: `python -m benchmarks.wire.load`, a job as JSON in, its figures as JSON out.

Rules
- A process of its own, the same for every contestant. It says how much of a core it took itself.
- Closed loop (no rate): every session asks anew as soon as it is answered.
- Open loop (a rate): questions fall due at fixed times, sessions in turn, whatever the server does.
  A latency runs from the time at which a question was due, not from when it could be sent: a
  server that hangs is charged for all who had to wait ("coordinated omission", Gil Tene, 2013).
- Where sessions ask `together`, that many questions leave, or fall due, at one time.
- A closed loop lasts longer than it should where the server has had too little CPU time for its
  clock, or some sessions too few answers.
- The server's CPU time is read by this process at both ends of the window in which answers are
  counted: user and system time of its processes, and of their children that have ended.
- Rates are of the same seconds. On shared cores they are worth less than CPU time.

Nothing is collected by the garbage collector in the meantime: its pauses would be the server's.
"""

import asyncio
import gc
import json
import os
import random
import resource
import select
import selectors
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.wire.job import Figures, Job
from benchmarks.wire.link import Link, LinkError, Question, Reply
from benchmarks.wire.links import kind_of

QUESTIONS = 16  # different ones of each session, asked in turn
LEAST_CPU_S = 0.2  # of the server, in a closed loop: its clock ticks a hundred times a second
LEAST_ANSWERS = 2  # of each session
MOST_TIMES = 20  # as long as a closed loop should take, on a machine that others use, it may
GRACE_S = 10.0  # how long what was due in the window is waited for after its end
TICK = os.sysconf("SC_CLK_TCK")


def main() -> int:
    job = Job(**json.load(sys.stdin))
    gc.disable()
    loop = asyncio.SelectorEventLoop(FineSelector())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a connection each
    try:
        figures = loop.run_until_complete(Load(job).run())
    except (LinkError, OSError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    json.dump(asdict(figures), sys.stdout)
    return 0


class FineSelector(selectors.EpollSelector):
    """epoll, which takes any number of connections, with select()'s timeouts.

    Those are microseconds; epoll's are milliseconds, which would be most of a latency.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


class Load:
    """One job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._links: list[Link] = []
        self._link_of: list[tuple[Link, int]] = []  # of each session, and its place there
        self._questions: list[list[Question]] = []
        self._asked = [0] * job.sessions
        self._asked_at = [0.0] * job.sessions
        self._left = [0] * -(-job.sessions // job.together)  # of each group: who is not answered
        self._answers = 0
        self._when_answered: Callable[[int], None] = self._begun
        self._all_begun = asyncio.Event()
        self._due: list[deque[float]] = [deque() for _ in range(job.sessions)]
        self._window = (float("inf"), float("inf"))  # of times at which questions are asked or due
        self._latencies: list[float] = []
        self._missing = 0  # due in the window and not answered so far

    async def run(self) -> Figures:
        await self._connect()
        troubles = [link.trouble for link in self._links]
        work = asyncio.ensure_future(self._measure())
        either: list[asyncio.Future[Any]] = [work, *troubles]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        self._when_answered = self._ignore
        if not work.done():
            work.cancel()
            reason = next(trouble.result() for trouble in troubles if trouble.done())
            raise LinkError(f"after {self._answers} answers: {reason}")
        for link in self._links:
            await link.close()
        return work.result()

    async def _connect(self) -> None:
        job = self._job
        names = [f"{job.prefix}-{session}" for session in range(job.sessions)]
        kind = kind_of(job.link)
        each = -(-job.sessions // job.connections) if kind.shared else 1
        for first in range(0, job.sessions, each):
            mine = names[first : first + each]
            link = kind(job.path, mine, Answer(self, first))
            await link.connect(job.port)
            self._links.append(link)
            self._link_of += [(link, place) for place in range(len(mine))]
        rng = random.Random(job.prefix)
        for link, place in self._link_of:
            rows = [[rng.uniform(-1, 1) for _ in range(job.width)] for _ in range(QUESTIONS)]
            self._questions.append([link.question(place, x, is_first=False) for x in rows])

    async def _measure(self) -> Figures:
        job = self._job
        await self._begin()
        ticker = None
        if job.rate is None:
            self._when_answered = self._answered_closed
            for group in range(len(self._left)):
                self._ask_group(group)
            self._flush()
        else:
            self._when_answered = self._answered_open
            ticker = asyncio.ensure_future(self._tick(job.rate))
        await asyncio.sleep(job.warm_s)
        start, cpu, own, answers = self._now()
        self._window = (start, start + job.seconds if job.rate else float("inf"))
        await asyncio.sleep(job.seconds)
        if not job.rate:
            await self._until_it_is_enough(start, cpu)
        end, cpu_after, own_after, answers_after = self._now()
        self._window = (start, min(self._window[1], end))
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

    async def _until_it_is_enough(self, start: float, cpu: float) -> None:
        job = self._job
        while time.perf_counter() < start + MOST_TIMES * job.seconds:
            is_counted = not job.pids or cpu_seconds(job.pids) - cpu >= LEAST_CPU_S
            if is_counted and len(self._latencies) >= LEAST_ANSWERS * job.sessions:
                return
            await asyncio.sleep(job.seconds / 10)

    def _now(self) -> tuple[float, float, float, int]:
        cpu = cpu_seconds(self._job.pids)
        return time.perf_counter(), cpu, time.process_time(), self._answers

    async def _begin(self) -> None:
        """Each session's first step: what it takes to begin is not measured."""
        rng = random.Random(self._job.prefix + "-first")
        for link, place in self._link_of:
            x = [rng.uniform(-1, 1) for _ in range(self._job.width)]
            link.ask(place, link.question(place, x, is_first=True))
        self._flush()
        await self._all_begun.wait()

    def _ask(self, session: int) -> None:
        link, place = self._link_of[session]
        asked = self._asked[session]
        self._asked[session] = asked + 1
        link.ask(place, self._questions[session][asked % QUESTIONS])

    def _flush(self) -> None:
        for link in self._links:
            link.flush()

    def answered(self, session: int) -> None:
        self._answers += 1
        self._when_answered(session)

    def _ignore(self, session: int) -> None:
        """The job is over."""

    def _begun(self, session: int) -> None:
        if self._answers == self._job.sessions:
            self._all_begun.set()

    def _is_counted(self, since: float) -> bool:
        return self._window[0] <= since < self._window[1]

    # Closed loop

    def _answered_closed(self, session: int) -> None:
        since = self._asked_at[session]
        if self._is_counted(since):
            self._latencies.append(time.perf_counter() - since)
        group = session // self._job.together
        self._left[group] -= 1
        if self._left[group]:
            return
        self._ask_group(group)
        if self._job.together > 1:
            self._flush()  # the group may have others' connections too

    def _ask_group(self, group: int) -> None:
        together = self._job.together
        members = range(self._job.sessions)[group * together : (group + 1) * together]
        self._left[group] = len(members)
        now = time.perf_counter()
        for session in members:
            self._asked_at[session] = now
            self._ask(session)

    # Open loop

    def _answered_open(self, session: int) -> None:
        due = self._due[session]
        if self._is_counted(since := due.popleft()):
            self._latencies.append(time.perf_counter() - since)
            self._missing -= 1
        if due:
            self._ask(session)

    async def _tick(self, rate: float) -> None:
        begin, number, together = time.perf_counter(), 0, self._job.together
        while True:
            now = time.perf_counter()
            while (due := begin + number // together * together / rate) <= now:
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

    def __call__(self, place: int, reply: Reply) -> None:
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
