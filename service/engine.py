"""The asyncio shell around the pure core: `step()` is the whole of it.

Rules
- State and last reply are committed together, before the reply is given out.
- A lost commit reloads and runs again; the client does not notice.
- A request that ends its session forgets it in its commit; one that also began it, where there was
  none, has nothing to commit.
- A result that is not finite fails that row alone; its session stays as it was.
- An exception in a run fails the jobs of that batch, and never the loop.
- Once draining, accepted requests are answered and new ones refused.
- A job that nobody waits for any more is not run. One whose time is up is refused, and if it ran
  just then what came of it is thrown away, unless its commit was under way.
- A forecast is a job like others, whose rows are never committed (`service/forecast.py`).
- A job whose model must first be loaded is put aside meanwhile, with its session; others go on.

The engine is one task on the server's loop. A batch that is estimated to take less than
`INLINE_S` runs on the loop itself: a trip to a thread and back costs more than that, under load.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from service.batcher import Batcher, Row
from service.batches import Batches
from service.blocks import Block, Blocks
from service.catalog import Catalog
from service.errors import (
    CarouselError,
    ClientError,
    DrainingError,
    InternalError,
)
from service.forecast import (
    Forecast,
    ForecastLimits,
    ForecastRequest,
    Line,
    UnderWay,
    check_session,
)
from service.homes import Fetch, Homes
from service.job import Answer, Job, Request, timed_out
from service.logs import about
from service.metrics import PUBLISH_PERIOD_S, Metrics, forget_dead_workers, unread_metrics
from service.model import Model
from service.observer import Observer, Work, named
from service.pace import Pace
from service.promotion import Promoted, Promotions, promote
from service.session import (
    CONTROL,
    Act,
    Ask,
    Record,
    SessionKey,
    decide,
    no_session,
)
from service.store import Commit, Outcome, Store
from service.sweeper import sweep_forever
from service.tracing import Tracing

INLINE_S = 0.002  # 2 ms: what the loop may spend without answering anybody else
# Loop turns between the first request and its batch: one reads the sockets, one runs the handlers
# that were woken. Bursts of 64 requests over 64 connections met in batches of 52 rows with none
# or one, of 64 with two or three.
GATHER_TURNS = 2
# Who was alone in so many batches is not waited for: 2 to 4 % of a lone client's CPU. Two or four
# clients that were not waited for after one such batch fell apart, and took 2 to 9 % more.
GATHER_AFTER = 16
MAX_FORECAST_STEPS = 100_000  # of all samples: at 0.1 ms a step, what a drain may wait for it
FAILED = "a batch of %d requests failed"

logger = logging.getLogger("carousel.engine")


class Engine:
    """Runs the requests of all sessions on all models of one process."""

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        *,
        max_batch: int,
        max_queue: int,
        max_steps: int,
        max_forecast_steps: int = MAX_FORECAST_STEPS,
        max_queue_per_tenant: int | None = None,
        request_timeout_s: float | None = None,
        metrics: Metrics | None = None,
        sweep_period_s: float | None = None,
        entropy: Callable[[], int] = lambda: random.getrandbits(63),
        fetch: Fetch | None = None,
        promotions: Promotions | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """
        Args:
            request_timeout_s: what any request may take; None: as long as it takes.
            metrics: None: counted in a registry that nobody reads.
            tracing: None: there are no spans.
            sweep_period_s: between two looks for idle sessions; None: somebody else looks.
        """
        self.catalog = catalog
        self.promotions = promotions or Promotions(store)
        self.entropy = entropy  # what a session's birth is drawn from
        self.max_queue = max_queue
        self._request_timeout_s = request_timeout_s
        # Of the queue at most a half: it would wait too long for more room among single requests.
        queue = min(max_queue, max_queue_per_tenant or max_queue)
        self.max_block = max(1, min(max_batch, queue // 2))
        self._homes = Homes(catalog, store, self.promotions, fetch)
        self._store = store
        self._max_steps = max_steps
        self._forecast_limits = ForecastLimits(max_batch, max_steps, max_forecast_steps)
        self.metrics = metrics or unread_metrics()
        self._observer = Observer(self.metrics, tracing)
        self._sweep_period_s = sweep_period_s
        self._pace = Pace(max_queue)
        self._busy_since: float | None = None  # when the last batch ended; None: nothing waited
        self._batcher: Batcher[Work] = Batcher(
            max_batch,
            max_queue,
            max_per_tenant=max_queue_per_tenant,
            retry_after_s=self._pace.retry_after_s,
        )
        self._pool = ThreadPoolExecutor(1, "carousel-run")
        self._blocks = Blocks(
            store.table,
            catalog,
            self.promotions,
            self._observer,
            max_batch,
            self._pool,
            INLINE_S,
            self._batcher,
            self._take_up,
            request_timeout_s,
        )
        self._under_way = UnderWay(
            max_batch, max_queue, max_queue_per_tenant, self._pace.retry_after_s
        )
        self._asides: set[asyncio.Task[None]] = set()  # of jobs that wait for their models
        self._work = asyncio.Event()  # there is a batch to take
        self._room = asyncio.Event()  # a job has left the queue
        self._batches = Batches(
            store,
            catalog,
            self._homes,
            self._observer,
            self._batcher,
            self._pool,
            INLINE_S,
            self._room,
            self._work.set,
            lambda: self.entropy(),
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None  # None: it was not started
        self._on_drain: set[Callable[[], object]] = set()
        self.is_draining = False

    # What protocols call ------------------------------------------------------------------------

    async def submit(self, request: Request) -> Job:
        """Accept a request; its answer comes in `job.future`.

        Raises:
            ClientError: the request does not fit its model. Send another.
            ArtifactError: its model's artifact is broken.
            CapacityError: the queue is full. Try again later.
            DrainingError: the server is shutting down.
        """
        arrived_s = self._observer.clock()
        try:
            self.refuse_if_draining()
            if self._blocks.has_any:
                await self._blocks.passed(request.key)
            job = await self._read(request)
            self._batcher.add(job)
        except CarouselError as error:
            self._observer.turn_away(request, error, arrived_s)
            raise
        self._observer.accept(job, arrived_s)
        self._limit(job)
        self._work.set()
        return job

    def seat_of(self, key: SessionKey) -> tuple[int, Model] | None:
        """Where a session that lives stands among those that may advance as rows of a `Block`.

        None: it may not: there is none, its model is not loaded or takes one row at a time, or
        requests are run, or told of, one by one here.
        """
        return self._blocks.seat_of(key)

    @property
    def seats_generation(self) -> int:
        """Seats of another mean nothing."""
        return self._blocks.table.generation

    def offer(self, block: Block) -> None:
        """Accept the requests of a block; its receiver is told what becomes of each.

        Raises:
            DrainingError: the server is shutting down.
        """
        self.refuse_if_draining()
        self._blocks.add(block)
        self._work.set()

    def _take_up(self, block: Block, row: int) -> None:
        """Let a row of a block go on as a job."""
        request = block.request(row)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            job = Job(request, block.model, self._max_steps, future)
            self._batcher.add(job)
        except ClientError as error:
            if len(self.catalog.versions_of(block.model.name)) > 1:  # its session may have moved
                task = asyncio.get_running_loop().create_task(self._read_anew(block, row))
                self._asides.add(task)
                task.add_done_callback(self._asides.discard)
            else:
                self._turn_away(block, row, request, error)
        except CarouselError as error:
            self._turn_away(block, row, request, error)
        else:
            self._observer.accept(job, block.arrived_s)
            self._limit(job)
            block.receiver.left(block, row, job)

    async def _read_anew(self, block: Block, row: int) -> None:
        request = block.request(row)
        try:
            job = await self._read(request)
            self._batcher.add(job)
        except CarouselError as error:
            self._turn_away(block, row, request, error)
            return
        self._observer.accept(job, block.arrived_s)
        self._limit(job)
        block.receiver.left(block, row, job)
        self._work.set()

    def _turn_away(self, block: Block, row: int, request: Request, error: CarouselError) -> None:
        self._observer.turn_away(request, error, block.arrived_s)
        block.receiver.refused(block, row, error)

    def refuse_if_draining(self) -> None:
        """DrainingError if nothing new is accepted any more."""
        if self.is_draining:
            raise DrainingError("the server is shutting down; send it to another, or try again")

    async def predict(self, request: Request) -> Answer:
        """Accept a request and wait for its answer; raises as `submit`, or what the run raised."""
        job = await self.submit(request)
        return await job.future

    async def forecast(self, request: ForecastRequest) -> Forecast:
        """Accept a forecast, from where its session stands now; `read_forecast` gives its lines.

        Raises:
            ClientError: there is no such session, or its model cannot do this. Send another.
            ArtifactError, CapacityError, DrainingError: as `submit`.
        """
        arrived_s = self._observer.clock()
        try:
            self.refuse_if_draining()
            forecast = await self._begin_forecast(request)
        except CarouselError as error:
            self._observer.turn_away(request, error, arrived_s)
            raise
        self._observer.accept(forecast, arrived_s)
        if forecast.is_whole:
            self._observer.end(forecast)
        else:
            self._limit(forecast)
        return forecast

    async def _begin_forecast(self, request: ForecastRequest) -> Forecast:
        record: Record | None = None
        if request.key is not None:
            (record,) = await self._store.get([request.key])
        check_session(request, record)
        model = await self._homes.loaded(lambda: self._homes.of(request, record))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        forecast = Forecast(request, record, model, self._forecast_limits, future)
        if forecast.is_whole:
            future.set_result(None)
            return forecast
        self._under_way.check(forecast)
        self._batcher.add(forecast)
        self._under_way.add(forecast)
        self._work.set()
        return forecast

    async def read_forecast(self, forecast: Forecast) -> list[Line]:
        """The lines since the last call, as soon as there is one; none at the end.

        Raises:
            CarouselError: what ended it early.
        """
        while not (lines := forecast.take()):
            if forecast.future.done():
                forecast.future.result()
                return []
            forecast.news.clear()
            await forecast.news.wait()
        self._batcher.wake(forecast)
        if self._batcher.has_waiting:
            self._work.set()
        return lines

    async def wait_for_room(self, tenant: str, jobs: int = 1) -> None:
        """Return once the queue takes so many more requests of `tenant`, or is empty."""
        while not self._batcher.has_room_for(tenant, jobs):
            self._room.clear()
            await self._room.wait()

    def abandon(self, job: Work) -> None:
        """Nobody waits for this job any more: do not run it, unless it runs already."""
        job.future.cancel()
        if self._batcher.discard(job):
            self._room.set()
            self._observer.abandon(job)

    def _limit(self, work: Work) -> None:
        """Refuse it once its time is up."""
        timeout_s = work.request.origin.within(self._request_timeout_s).timeout_s
        if timeout_s is None:
            return
        loop = asyncio.get_running_loop()
        waited_s = self._observer.clock() - work.arrived_s
        work.timeout_s, work.due_s = timeout_s, loop.time() + timeout_s - waited_s
        timer = loop.call_at(work.due_s, self._time_out, work)
        work.future.add_done_callback(lambda _: timer.cancel())

    def _time_out(self, work: Work) -> None:
        if work.future.done() or work.is_committing:
            return
        error = timed_out(work.timeout_s)
        if self._batcher.discard(work):
            self._room.set()
            self._observer.end(work, error)
        else:
            work.too_late = error
        work.future.set_exception(error)

    async def show_metrics(self) -> None:
        """Bring what /metrics shows up to date, live sessions last, as the store may fail."""
        forget_dead_workers()
        self.publish()
        own = await self._store.count(CONTROL)
        self.metrics.live.set(await self._store.count() - own)

    def publish(self) -> None:
        """Write what was counted to where /metrics finds it."""
        catalog = self.catalog
        depth = self._batcher.depth
        self.metrics.publish(depth, self.is_draining, catalog.served, catalog.broken)

    async def _publish_forever(self) -> None:
        while True:
            await asyncio.sleep(PUBLISH_PERIOD_S)
            try:
                self.publish()
            except OSError:  # the disk of the files that workers count in is full
                logger.exception("the metrics could not be written")

    async def look_up(self, key: SessionKey) -> Record:
        """Where a session stands; SessionNotFoundError if there is none."""
        (record,) = await self._store.get([key])
        if record is None:
            raise no_session(key.session_id)
        return record

    async def reach_store(self) -> None:
        """Read from the store, to see that it is there; StoreUnavailableError if it is not."""
        await self._store.get([SessionKey("", "")])

    async def drop(self, key: SessionKey) -> Record:
        """Forget a session, after the requests that it has waiting; SessionNotFoundError."""

        def forget(record: Record | None) -> None:
            decide(Ask(key.session_id, act=Act.DROP), record)

        before, _ = await self.change(key, forget)
        if before is None:
            raise no_session(key.session_id)
        return before

    async def change(
        self,
        key: SessionKey,
        what: Callable[[Record | None], Record | None],
        most: int | None = None,
    ) -> tuple[Record | None, Record | None]:
        """Replace a session's record by what `what` makes of it, at a step boundary.

        Args:
            what: of the record, None where there is no session, to the new record, None to forget
                it. Called again if another request or worker was faster; may raise to change
                nothing.
            most: live sessions of the key's tenant, if this makes a new one; None: any number.
        Returns:
            The record before, and the one after.
        Raises:
            CapacityError: there is no room for another session.
        """
        await self.settle(key)
        while True:
            (before,) = await self._store.get([key])
            after = what(before)
            (outcome,) = await self._store.commit([Commit(key, before, after, most)])
            if outcome is Outcome.DONE:
                if before is None and after is not None:
                    self._observer.opened(after)
                return before, after
            if outcome is not Outcome.LOST:
                raise await self._batches.full(outcome, key.tenant)

    async def load(self, reference: str) -> Model:
        """The model `name` or `name:version`, loaded if it was not.

        Raises:
            UnknownModelError: no such model, or no such version of it, is served.
            ArtifactError: its artifact is broken.
        """
        return await self._homes.load(reference)

    async def promote(self, name: str, source: str | None, to: str | None) -> Promoted:
        """Move the sessions of one version to another, each with its next request; see there."""
        return await promote(self.catalog, self.load, self.promotions, name, source, to)

    async def settle(self, key: SessionKey) -> None:
        """Return once what the session has waiting here now is done."""
        if self._blocks.has_any:
            await self._blocks.passed(key)
        last = self._batcher.last_of(key)
        if last is not None:
            await asyncio.wait([last.future])

    # Life ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to run what is submitted, on the running loop."""
        self._loop = loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._run_forever()))
        self._tasks.append(loop.create_task(self._publish_forever()))
        if self._sweep_period_s is not None:
            sweeping = sweep_forever(self._store, self.metrics, self._sweep_period_s)
            self._tasks.append(loop.create_task(sweeping))

    def drain(self) -> None:
        """Refuse new requests from now on; those accepted are answered."""
        if not self.is_draining:
            self.is_draining = True
            for callback in list(self._on_drain):
                callback()

    def on_drain(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback` when draining begins; returns what takes it back."""
        self._on_drain.add(callback)
        return lambda: self._on_drain.discard(callback)

    async def close(self) -> None:
        """Drain, answer what was accepted, and release everything."""
        self.drain()
        while not self._batcher.is_empty:
            self._room.clear()
            await self._room.wait()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.publish()
        self._pool.shutdown()
        await self._store.close()

    async def _run_forever(self) -> None:
        alone = 0  # batches in a row that had one request, and nothing waited behind it
        while True:
            await self._work.wait()
            is_alone = self._batcher.depth == 1 and not self._blocks.has_waiting
            if alone < GATHER_AFTER or not is_alone:
                for _ in range(GATHER_TURNS):
                    await asyncio.sleep(0)
                is_alone = self._batcher.depth == 1 and not self._blocks.has_waiting
            alone = alone + 1 if is_alone else 0
            if self._blocks.has_waiting:
                await self._run_blocks()
            if self._batcher.has_waiting:
                await self.step()
            if not (self._batcher.has_waiting or self._blocks.has_waiting):
                self._work.clear()

    async def _run_blocks(self) -> None:
        clock = time.monotonic
        since = self._busy_since or clock()
        rows = await self._blocks.run()
        self._batches.finished += rows
        self._room.set()
        now = clock()
        self._pace.note(rows, now - since)
        self._busy_since = None if self._batcher.is_empty else now

    # One step -----------------------------------------------------------------------------------

    async def step(self) -> None:
        """Take a batch, load states, run, commit, answer."""
        batch = self._batcher.take()
        self._observer.take(batch)
        clock = time.monotonic
        since, finished = self._busy_since or clock(), self._batches.finished
        try:
            rows = await self._batches.load(batch)
            whole = await self._batches.run(rows)
            await self._batches.commit(whole)
        except CarouselError as error:
            logger.error(
                FAILED + ": %s", len(batch), error.message, extra=_about(batch, error.code)
            )
            self._batches.fail(batch, error)
        except Exception:
            logger.exception(FAILED, len(batch), extra=_about(batch, InternalError.code))
            self._batches.fail(batch, InternalError("the server failed; its log says why"))
        self._observer.end_batch()
        now = clock()
        self._pace.note(self._batches.finished - finished, now - since)
        self._busy_since = None if self._batcher.is_empty else now

    async def _read(self, request: Request) -> Job:
        """The request as a job of the model that its session is most likely on.

        `_begin` corrects the guess. Only where the rows do not fit it is the session looked up.
        """
        loop = self._loop or asyncio.get_running_loop()  # to ask for it is a call of the kernel
        future: asyncio.Future[Answer] = loop.create_future()
        model = self._homes.at_once(request)
        if model is None:
            last = self._batcher.last_of(request.key)
            model = await self._homes.guess(request, last.model if last else None)
        try:
            return Job(request, model, self._max_steps, future)
        except ClientError:
            if len(self.catalog.versions_of(model.name)) == 1:
                raise
            home = await self._homes.look_up(request)
            if home is model:
                raise
            return Job(request, home, self._max_steps, future)


def _about(batch: Sequence[Row[Work]], code: str) -> dict[str, dict[str, object]]:
    model = batch[0].job.model.reference if batch else None
    return about(code=code, model=model, request_ids=named(batch))
