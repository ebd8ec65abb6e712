"""Which waiting requests run together next. Pure: no clock, no loop, no model.

Rules
- Whatever waits when the engine is free runs at once; nothing is delayed to fill a batch.
- One session has at most one row in a batch, and its requests run in their order of arrival.
- A batch is of one model and of at most `max_batch` rows. Single steps have batches of their own,
  so that none waits for a longer row; chunks of all other lengths run together
  (`service/pieces.py`: none is paid for the longest).
- A job that runs apart (its model is not isolated, and makes a call of each step of each row) has
  a batch to itself: rows beside it would save nothing, and all else would wait for all of them.
- A job may fill several rows of a batch (a forecast of many samples); it is never split.
- A long chunk runs in slices of at most `slice_steps`, or `APART_SLICE_STEPS` where it runs apart;
  between two slices others have their turn.
- Lanes (a model, and whether single steps) take turns, in a lane its tenants, one job a turn, and
  of a tenant its sessions. So how long a job waits does not depend on how many others wait of
  another tenant, but only on how many tenants there are.
- At most `max_queue` jobs wait or run, and of one tenant `max_per_tenant`: none fills the queue
  for all others.

How it works: each session has a queue of jobs, and stands in the lane of its first job unless
that job is running. `take` empties the lane whose turn it is, up to `max_batch` rows; `release`
puts the session back at the end of a lane, if it has more to do. `park` puts it aside instead,
until `wake`. A tenant that has had its turn goes behind the others, also in the next batch; one of
which a job was too wide for what was left of a batch goes before them.
"""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

from service.errors import CapacityError

SLICE_STEPS = 128  # about a millisecond of a small model, which is what others wait for it
APART_SLICE_STEPS = 16  # calls of some 0.1 ms each: one or two milliseconds as well


class Job(Protocol):
    """What the batcher needs to know of a request."""

    @property
    def key(self) -> Hashable:
        """Which session's request it is."""
        ...

    @property
    def tenant(self) -> Hashable:
        """Whose session it is."""
        ...

    @property
    def model(self) -> Hashable:
        """What it runs on; may change while the job runs, not while it waits."""
        ...

    @property
    def runs_apart(self) -> bool:
        """Whether its model takes one row at a time; changes with the model only."""
        ...

    @property
    def steps_left(self) -> int:
        """At least 1; may change while the job runs, not while it waits."""
        ...

    @property
    def rows(self) -> int:
        """Rows that it fills in a batch; may change while the job runs, not while it waits."""
        ...


J = TypeVar("J", bound=Job)


class Row(NamedTuple, Generic[J]):
    """One job's part of a batch: its next `steps`."""

    job: J
    steps: int


Lane = tuple[Hashable, bool]  # model, single steps
Turns = dict[Hashable, dict[Hashable, None]]  # tenant -> its sessions; both in order of turn


class Batcher(Generic[J]):
    """The waiting and the running jobs of one engine."""

    def __init__(
        self,
        max_batch: int,
        max_queue: int,
        slice_steps: int = SLICE_STEPS,
        max_per_tenant: int | None = None,
        retry_after_s: Callable[[int], int] = lambda waiting: 1,
    ) -> None:
        """
        Args:
            max_per_tenant: jobs of one tenant; None: `max_queue`.
            retry_after_s: of a number of jobs, whole seconds until they are done.
        """
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._slice_steps = slice_steps
        self._max_per_tenant = max_queue if max_per_tenant is None else max_per_tenant
        self._retry_after_s = retry_after_s
        self._counts: Counter[Hashable] = Counter()  # jobs by tenant; 0 is not kept
        self._queues: dict[Hashable, deque[J]] = {}
        self._lanes: dict[Lane, Turns] = {}  # in order of turn
        self._running: set[Hashable] = set()
        self._parked: set[Hashable] = set()
        self._count = 0

    def is_full_for(self, tenant: Hashable) -> bool:
        return self._count >= self._max_queue or self._counts[tenant] >= self._max_per_tenant

    def has_room_for(self, tenant: Hashable, jobs: int) -> bool:
        """Whether so many more are taken; of more than are ever taken, once nothing waits."""
        held, count = self._counts[tenant], self._count
        return (count == 0 or count + jobs <= self._max_queue) and (
            held == 0 or held + jobs <= self._max_per_tenant
        )

    @property
    def is_empty(self) -> bool:
        return self._count == 0

    @property
    def depth(self) -> int:
        """Jobs that wait or run."""
        return self._count

    @property
    def has_waiting(self) -> bool:
        """Whether `take` would give rows."""
        return bool(self._lanes)

    @property
    def has_jobs(self) -> bool:
        """Whether any session has a job that waits or runs."""
        return bool(self._queues)

    def is_busy(self, key: Hashable) -> bool:
        """Whether the session has a job that waits or runs."""
        return key in self._queues

    def hold(self, tenant: Hashable, jobs: int) -> None:
        """Count so many jobs as waiting that are not here: they wait elsewhere."""
        self._count += jobs
        self._counts[tenant] += jobs

    def let_go(self, tenant: Hashable, jobs: int) -> None:
        """They are done with, or are added now."""
        self._count -= jobs
        self._counts[tenant] -= jobs
        if not self._counts[tenant]:
            del self._counts[tenant]

    def last_of(self, key: Hashable) -> J | None:
        """The session's latest job that has not finished."""
        queue = self._queues.get(key)
        return queue[-1] if queue else None

    def add(self, job: J) -> None:
        """Let a job wait for its turn.

        Raises:
            CapacityError: as many wait or run already as may. Try again later.
        """
        if self.is_full_for(job.tenant):
            raise self._full(job.tenant)
        self._count += 1
        self._counts[job.tenant] += 1
        queue = self._queues.get(job.key)
        if queue is None:
            self._queues[job.key] = deque((job,))
            self._enter_lane(job)
        else:
            queue.append(job)

    def take(self) -> list[Row[J]]:
        """The rows of the next batch; each job must be released after it ran."""
        if not self._lanes:
            return []
        lane = next(iter(self._lanes))
        turns = self._lanes.pop(lane)
        jobs, order = self._choose(turns)
        for job in jobs:
            del turns[job.tenant][job.key]
            self._running.add(job.key)
        left = {tenant: turns[tenant] for tenant in order if turns[tenant]}
        if left:
            self._lanes[lane] = left  # at the end: the other lanes have their turn first
        return [Row(job, self._slice_of(job)) for job in jobs]

    def _choose(self, turns: Turns) -> tuple[list[J], list[Hashable]]:
        """The jobs of the next batch, and the tenants as their turns are after that."""
        queues = self._queues
        first = queues[next(iter(next(iter(turns.values()))))][0]  # a lane is of one model
        room = first.rows if first.runs_apart else max(first.rows, self._max_batch)
        jobs: list[J] = []
        held_up: dict[Hashable, None] = {}
        waiting: deque[tuple[Hashable, Iterator[Hashable]]] = deque(
            (tenant, iter(sessions)) for tenant, sessions in turns.items()
        )
        while waiting and room:
            tenant, sessions = waiting.popleft()
            for key in sessions:
                job = queues[key][0]
                if job.rows <= room:
                    jobs.append(job)
                    room -= job.rows
                    waiting.append((tenant, sessions))
                    break
                held_up[tenant] = None
        return jobs, [*held_up, *(t for t, _ in waiting if t not in held_up)]

    def release(self, job: J, *, finished: bool) -> None:
        """End a job's part in a batch; an unfinished one stays first of its session."""
        self._running.remove(job.key)
        queue = self._queues[job.key]
        if finished:
            queue.popleft()
            self.let_go(job.tenant, 1)
        self._next_in(job.key)

    def park(self, job: J) -> None:
        """End a job's part in a batch; it stays first of its session, and takes no turn."""
        self._running.remove(job.key)
        self._parked.add(job.key)

    def wake(self, job: J) -> None:
        """Let a parked job wait for its turn again; nothing if it is not parked."""
        if job.key in self._parked:
            self._parked.remove(job.key)
            self._enter_lane(job)

    def discard(self, job: J) -> bool:
        """Forget a job unless it is in a batch right now; whether it was forgotten."""
        queue = self._queues.get(job.key)
        if queue is None or job not in queue:
            return False
        is_first = queue[0] is job
        if is_first and job.key in self._running:
            return False
        if is_first and job.key in self._parked:
            self._parked.remove(job.key)
        elif is_first:
            self._leave_lane(job)
        queue.remove(job)
        self.let_go(job.tenant, 1)
        if is_first:
            self._next_in(job.key)
        return True

    def is_running(self, job: J) -> bool:
        queue = self._queues.get(job.key)
        return queue is not None and queue[0] is job and job.key in self._running

    def _full(self, tenant: Hashable) -> CapacityError:
        # As tenants take turns, one's jobs are done at the latest when all of now are.
        wait_s = self._retry_after_s(self._count)
        if self._count >= self._max_queue:
            limit = "queue"
            message = f"{self._count} requests are waiting, the server takes {self._max_queue}"
        else:
            limit = "tenant_queue"
            message = (
                f"{self._counts[tenant]} of your requests are waiting, the server takes "
                f"{self._max_per_tenant} of one tenant"
            )
        return CapacityError(f"{message}; retry in {wait_s} s", limit=limit, retry_after_s=wait_s)

    def _next_in(self, key: Hashable) -> None:
        queue = self._queues[key]
        if queue:
            self._enter_lane(queue[0])
        else:
            del self._queues[key]

    def _slice_of(self, job: J) -> int:
        most = APART_SLICE_STEPS if job.runs_apart else self._slice_steps
        return min(job.steps_left, most)

    def _enter_lane(self, job: J) -> None:
        lane = (job.model, job.steps_left == 1)
        turns = self._lanes.get(lane)
        if turns is None:
            self._lanes[lane] = {job.tenant: {job.key: None}}
            return
        sessions = turns.get(job.tenant)
        if sessions is None:
            turns[job.tenant] = {job.key: None}
        else:
            sessions[job.key] = None

    def _leave_lane(self, job: J) -> None:
        lane = (job.model, job.steps_left == 1)
        turns = self._lanes[lane]
        del turns[job.tenant][job.key]
        if not turns[job.tenant]:
            del turns[job.tenant]
        if not turns:
            del self._lanes[lane]
