"""What is done with a batch: states loaded, rows run, results committed, jobs answered.

The three parts of `Engine.step`, which has the rules. A job that leaves a batch is answered, is
refused, or waits again: for its next slice, for its model, or because it lost a race.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from service.batcher import Batcher, Row
from service.catalog import Catalog
from service.errors import CapacityError, CarouselError, ModelLoadingError, StoreFullError
from service.forecast import Forecast, Line
from service.homes import Homes
from service.job import Answer, Job, timed_out
from service.model import Model
from service.observer import Observer, Work
from service.session import Move, Record, decide
from service.store import Commit, Outcome, Store

MAX_RETRY_AFTER_S = 60  # a full server: sessions are dropped as well as expire, so look again soon


@dataclass(slots=True)
class Batches:
    """Of one engine."""

    _store: Store
    _catalog: Catalog
    _homes: Homes
    _observer: Observer
    _batcher: Batcher[Work]
    _pool: Executor
    _inline_s: float
    _room: asyncio.Event  # set when a job has left the queue
    _wake: Callable[[], object]  # there is a batch to take again
    _entropy: Callable[[], int]
    finished: int = 0  # jobs that left the queue and steps that were forecast, ever
    _asides: set[asyncio.Task[None]] = field(default_factory=set)  # of jobs that wait for models

    def fail(self, batch: Sequence[Row[Work]], error: CarouselError) -> None:
        """Refuse what is still in the batch."""
        for row in batch:
            if self._batcher.is_running(row.job):
                self._refuse(row.job, type(error)(error.message, **error.data))

    async def load(self, batch: Sequence[Row[Work]]) -> list[Row[Work]]:
        """The rows that must run; the others are answered, refused, or wait again."""
        jobs = [row.job for row in batch if isinstance(row.job, Job)]
        fresh = [job for job in jobs if job.progress is None]
        if fresh:
            keys = [job.key for job in fresh if not job.request.is_unnamed]
            with self._observer.reading:
                records = iter(await self._store.get(keys) if keys else [])
            for job in fresh:
                record = None if job.request.is_unnamed else next(records)
                try:
                    self._begin(job, record)
                except ModelLoadingError as error:
                    self._put_aside(job, error)
                except CarouselError as error:
                    self._refuse(job, error)
        return [row for row in batch if self._batcher.is_running(row.job)]

    def _begin(self, job: Job, record: Record | None) -> None:
        taken = job.model
        is_settled = record is not None and self._homes.settles(job, record)
        move = decide(job.ask, record) if is_settled else self._homes.decide(job, record)
        if record is not None:
            if move is Move.REPLAY:
                self._answer(job, job.replay(record), is_replay=True)
                return
            if not is_settled:
                job.bind_to(self._homes.moved(job, record))
        self._catalog.note_use(job.model.name, job.model.version)
        if job.model is taken:
            job.start(record, self._entropy(), anew=move is Move.BEGIN)
        else:  # it waits for a batch of its model
            self._batcher.release(job, finished=False)

    def _put_aside(self, job: Job, error: ModelLoadingError) -> None:
        """Keep the job and its session out of batches until its model is loaded."""
        self._batcher.park(job)
        task = asyncio.get_running_loop().create_task(self._load_for(job, error))
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    async def _load_for(self, job: Job, error: ModelLoadingError) -> None:
        failure: CarouselError | None = None
        try:
            await self._homes.fetch(error)
        except CarouselError as why:
            failure = why
        if job.future.done():
            return  # abandoned, and forgotten, meanwhile
        if failure is None:
            self._batcher.wake(job)
            self._wake()
        else:
            self._batcher.discard(job)
            self._room.set()
            self._observer.end(job, failure)
            job.future.set_exception(failure)

    async def run(self, rows: Sequence[Row[Work]]) -> list[Job]:
        """Advance each row by its slice; the jobs that are whole now."""
        if not rows:
            return []
        model, width = rows[0].job.model, sum(row.job.rows for row in rows)
        steps = max(row.steps for row in rows)
        with self._observer.running(model, width, steps):
            if model.cost.estimate_s(width, steps) < self._inline_s:
                slices = _run_slices(model, rows)
            else:
                loop = asyncio.get_running_loop()
                slices = await loop.run_in_executor(self._pool, _run_slices, model, rows)
        whole: list[Job] = []
        for row, result in zip(rows, slices, strict=True):
            if isinstance(result, CarouselError):
                self._refuse(row.job, result)
            elif isinstance(row.job, Forecast):
                self._tell(row.job, result)
            elif row.job.too_late is not None:
                self._refuse(row.job, row.job.too_late)
            elif row.job.steps_left == 0:
                whole.append(row.job)
            else:
                self._batcher.release(row.job, finished=False)
        return whole

    def _tell(self, forecast: Forecast, lines: Sequence[Line]) -> None:
        """Give a forecast's reader what a batch found out."""
        forecast.put(lines)
        self._observer.forecast(forecast, len(lines))
        over = forecast.is_whole or forecast.future.done()  # done already: abandoned
        if over:
            self._leave(forecast)
            if forecast.future.done():
                self._observer.leave(forecast)
            else:
                self._observer.answer(forecast)
                forecast.future.set_result(None)
            return
        self.finished += 1
        if forecast.is_ahead:
            self._batcher.park(forecast)
        else:
            self._batcher.release(forecast, finished=False)

    async def commit(self, jobs: Sequence[Job]) -> None:
        """Commit jobs whose every step was run, and answer them; a lost race waits again."""
        if not jobs:
            return
        records: list[tuple[Job, Record]] = []  # of those that have something to commit
        commits: list[Commit] = []
        for job in jobs:
            before, record = job.started.before, job.whole_record()
            if before is None and job.request.ends:
                self._answer(job, job.whole_answer(record))
                continue
            after = None if job.request.ends else record
            records.append((job, record))
            commits.append(Commit(job.key, before, after, job.request.most))
        if not commits:
            return
        for job, _ in records:
            job.is_committing = True
        with self._observer.committing:
            outcomes = await self._store.commit(commits)
        for (job, record), outcome in zip(records, outcomes, strict=True):
            if outcome is Outcome.DONE:
                if not job.request.ends:
                    self._store.table.note(job.key, record)
                if record.last.created and not job.request.ends:
                    self._observer.opened(record)
                self._answer(job, job.whole_answer(record))
            elif outcome is not Outcome.LOST:
                self._refuse(job, await self.full(outcome, job.key.tenant))
            elif job.future.done():  # abandoned; and perhaps its session was dropped since
                self._leave(job)
                self._observer.leave(job)
            elif asyncio.get_running_loop().time() >= job.due_s:
                self._refuse(job, timed_out(job.timeout_s))
            else:
                self._observer.metrics.lost_commit()
                job.is_committing = False
                job.restart()
                self._batcher.release(job, finished=False)

    def _leave(self, job: Work) -> None:
        """The end of a job that was in a batch."""
        self._batcher.release(job, finished=True)
        self.finished += 1
        self._room.set()

    def _answer(self, job: Job, answer: Answer, is_replay: bool = False) -> None:
        self._leave(job)
        self._observer.answer(job, is_replay)
        if not job.future.done():
            job.future.set_result(answer)

    def _refuse(self, job: Work, error: CarouselError) -> None:
        self._leave(job)
        self._observer.refuse(job, error)
        if not job.future.done():
            job.future.set_exception(error)

    async def full(self, outcome: Outcome, tenant: str) -> CapacityError:
        """Why a store takes no new session, or nothing."""
        if outcome is Outcome.NO_SPACE:
            return StoreFullError("the disk of the sessions is full; nothing was lost, try again")
        whose = tenant if outcome is Outcome.TENANT_FULL else None
        first_s = await self._store.room_in_s(whose)
        wait_s = math.ceil(min(max(1.0, first_s), MAX_RETRY_AFTER_S))
        held = await self._store.count(whose)
        return CapacityError(
            f"{'the server' if whose is None else 'your tenant'} holds {held} sessions and takes "
            f"no more; drop one, or retry in {wait_s} s",
            limit="sessions" if whose is None else "tenant_sessions",
            retry_after_s=wait_s,
        )


def _run_slices(model: Model, rows: Sequence[Row[Work]]) -> list[Sequence[Line] | CarouselError]:
    """Run a batch; of each job the lines (a forecast's) or what went wrong. No loop is needed."""
    jobs = [row.job for row in rows]
    chunks = [chunk for row in rows for chunk in row.job.chunks(row.steps)]
    states = [state for job in jobs for state in job.states()]
    ys, after, finite = model.run(chunks, states)
    found: list[Sequence[Line] | CarouselError] = []
    at = 0
    for job in jobs:
        part = slice(at, at + job.rows)
        at = part.stop
        try:
            found.append(job.advance(ys[part], after[part], finite[part]))
        except CarouselError as error:
            found.append(error)
    return found
