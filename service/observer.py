"""What is told of requests and batches: metrics, spans, lines of the access log.

The engine's one seam to all of them. It calls:

    accept, turn_away          as a request comes
    answer, refuse, leave      as it ends in a batch
    end, abandon               as it ends in none
    take, end_batch            around a batch, of which `reading`, `running`, `committing` are timed

Rules
- What comes of a request within a batch is told at the end of the batch: no answer leaves before,
  as the engine holds the loop, so that is when it is there; and one clock and one look into each
  table serve a whole batch. Measured, see DESIGN.md.
- Nothing here raises on account of what a request holds, and nothing of x or y is kept.
- The engine runs one batch at a time, so there is one of all that belongs to a batch.
"""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

from service.batcher import Row
from service.errors import CarouselError
from service.forecast import Forecast, ForecastRequest
from service.job import Job, Request
from service.logs import about, access, writes_access_lines
from service.metrics import Metrics, OfModel, Tally
from service.model import Model
from service.origin import Origin
from service.session import Record
from service.tracing import Attributes, Span, Tracing, end_span

Work = Job | Forecast

DONE, REPLAYED, REFUSED, FAILED, ABANDONED = "done", "replayed", "refused", "failed", "abandoned"
MAX_NAMED = 20  # request ids in a line of the log


class AnyBlock(Protocol):
    """What is told of a block; see `service/blocks.py`."""

    model: Model
    origin: Origin
    arrived_s: float

    def __len__(self) -> int: ...


class Part:
    """A part of a batch that is timed, and has a span where the batch has one."""

    def __init__(self, observer: "Observer", name: str, tally: Tally | None) -> None:
        self._observer = observer
        self._name = name
        self.tally = tally
        self._began_s = 0.0
        self._span: Span | None = None

    def __enter__(self) -> None:
        self._span = self._observer.part(self._name)
        self._began_s = self._observer.clock()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        seconds = self._observer.clock() - self._began_s
        if self.tally is not None:
            self.tally.add(seconds)
        self._observer.spent(self._name, seconds)
        if self._span is not None:
            end_span(self._span, {}, *_blame(error))


class Observer:
    """Of one engine."""

    def __init__(
        self,
        metrics: Metrics,
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.metrics = metrics
        self.clock = clock  # seconds, from anywhere
        self._tracing = tracing
        self._has_access_lines = writes_access_lines()
        self._ended: list[tuple[Work, str, CarouselError | None]] = []
        self._batch: Span | None = None
        self._model: Model | None = None  # of what is counted in `_counts`
        self._counts: OfModel | None = None
        self._rows = 0  # of the batch
        self.reading = Part(self, "read", metrics.read_s)
        self.committing = Part(self, "commit", metrics.commit_s)
        self._running = Part(self, "run", None)

    # A request ----------------------------------------------------------------------------------

    def accept(self, work: Work, arrived_s: float) -> None:
        """The engine took a request; it arrived at `arrived_s` of `clock`."""
        work.arrived_s = arrived_s
        if self._tracing is not None:
            work.span = self._tracing.request(work.request.origin)

    def turn_away(
        self, request: Request | ForecastRequest, error: CarouselError, arrived_s: float
    ) -> None:
        """The engine did not take it."""
        span = None if self._tracing is None else self._tracing.request(request.origin)
        protocol, outcome = request.origin.protocol, _outcome(error)
        seconds = self.clock() - arrived_s
        self.metrics.nowhere.ended(protocol, outcome, seconds)
        self.metrics.latency_s[protocol].add(seconds)
        self._write(request, None, outcome, error, seconds, span)

    def abandon(self, work: Work) -> None:
        """Nobody waits for it any more, and it is in no batch."""
        self._tell_of(work, ABANDONED, None, self.clock())

    def end(self, work: Work, error: CarouselError | None = None) -> None:
        """It got its answer, or this error, and is in no batch."""
        self._tell_of(work, DONE if error is None else _outcome(error), error, self.clock())

    # A batch ------------------------------------------------------------------------------------

    def take(self, batch: Sequence[Row[Work]]) -> None:
        """These jobs have their turn."""
        now, wait = self.clock(), self.metrics.wait_s.add
        fresh, waited = 0, 0.0
        for row in batch:
            work = row.job
            if not work.was_taken:
                work.was_taken = True
                fresh += 1
                waited += now - work.arrived_s
                wait(now - work.arrived_s)
        self._rows = len(batch)
        if batch:  # of one model
            self._of(batch[0].job.model).spent("wait", fresh, waited)
        if self._tracing is not None:
            spans = [row.job.span for row in batch if row.job.span is not None]
            if spans:
                self._batch = self._tracing.batch(spans, len(batch))

    def part(self, name: str) -> Span | None:
        """A span inside the batch's, where it has one."""
        if self._batch is None or self._tracing is None:
            return None
        return self._tracing.part(self._batch, name)

    def spent(self, part: str, seconds: float) -> None:
        """This batch took so long for a part; each of its requests did."""
        if self._counts is not None:
            self._counts.spent(part, self._rows, self._rows * seconds)

    def running(self, model: Model, width: int, steps: int) -> Part:
        """`width` rows of at most `steps` steps run on `model`; to be entered."""
        counts = self._of(model)
        counts.rows.add(width)
        self._running.tally = counts.run_s
        if self._batch is not None:
            self._batch.set_attributes(
                {
                    "carousel.model": model.name,
                    "carousel.version": model.version,
                    "carousel.rows": width,
                    "carousel.steps": steps,
                }
            )
        return self._running

    def forecast(self, forecast: Forecast, lines: int) -> None:
        """So many lines of a forecast are known."""
        self._of(forecast.model).forecast += lines * forecast.samples

    def answer(self, work: Work, is_replay: bool = False) -> None:
        """A job of this batch got its answer."""
        self._ended.append((work, REPLAYED if is_replay else DONE, None))

    def refuse(self, work: Work, error: CarouselError) -> None:
        """A job of this batch got an error."""
        self._ended.append((work, _outcome(error), error))

    def leave(self, work: Work) -> None:
        """A job of this batch ended, and nobody waits for it."""
        self._ended.append((work, ABANDONED, None))

    def end_batch(self) -> None:
        """All that came of it is known."""
        if self._batch is not None:
            self._batch.end()
            self._batch = None
        ended = self._ended
        if ended:
            now = self.clock()
            for work, outcome, error in ended:
                self._tell_of(work, outcome, error, now)
            ended.clear()

    # Blocks -------------------------------------------------------------------------------------

    @property
    def tells_each(self) -> bool:
        """Whether each request is told of for itself, by a span or a line: not in blocks."""
        return self._tracing is not None or self._has_access_lines

    def take_blocks(self, blocks: "Sequence[AnyBlock]") -> None:
        """These have their turn."""
        now = self.clock()
        self._rows = sum(len(block) for block in blocks)
        counts = self._of(blocks[0].model)
        for block in blocks:
            rows, waited = len(block), now - block.arrived_s
            self.metrics.wait_s.add_many(waited, rows)
            counts.spent("wait", rows, rows * waited)

    def answer_rows(self, block: "AnyBlock", rows: int, steps: int) -> None:
        """So many of a block's rows, of so many steps each, are done."""
        self._of(block.model).steps += rows * steps
        self._end_rows(block, DONE, rows)

    def refuse_row(self, block: "AnyBlock", error: CarouselError) -> None:
        """One of its rows failed."""
        self._end_rows(block, _outcome(error), 1)

    def abandon_row(self, block: "AnyBlock") -> None:
        """Nobody waits for one of its rows any more."""
        self._end_rows(block, ABANDONED, 1)

    def _end_rows(self, block: "AnyBlock", outcome: str, rows: int) -> None:
        protocol, seconds = block.origin.protocol, self.clock() - block.arrived_s
        self._of(block.model).ended_many(protocol, outcome, seconds, rows)
        self.metrics.latency_s[protocol].add_many(seconds, rows)

    # Sessions -----------------------------------------------------------------------------------

    def opened(self, record: Record) -> None:
        """A session began, or was restored."""
        self.metrics.opened.inc()
        self.metrics.of(record.model, record.version).begun += 1

    # The rest -----------------------------------------------------------------------------------

    def _of(self, model: Model) -> OfModel:
        if model is not self._model or self._counts is None:
            self._model = model
            self._counts = self.metrics.of(model.name, model.version)
        return self._counts

    def _tell_of(self, work: Work, outcome: str, error: CarouselError | None, now: float) -> None:
        model = work.model
        counts = self._counts if model is self._model and self._counts else self._of(model)
        if outcome is DONE and type(work) is Job:
            counts.steps += work.started.steps
        protocol = work.request.origin.protocol
        seconds = now - work.arrived_s
        counts.ended(protocol, outcome, seconds)
        self.metrics.latency_s[protocol].add(seconds)
        if work.span is not None or self._has_access_lines:
            self._write(work.request, work, outcome, error, seconds, work.span)

    def _write(
        self,
        request: Request | ForecastRequest,
        work: Work | None,  # None: it never came so far
        outcome: str,
        error: CarouselError | None,
        seconds: float,
        span: Span | None,
    ) -> None:
        if span is not None:
            end_span(span, _attributes(work, outcome), *_blame(error))
        if self._has_access_lines:
            access.info("request", extra=about(**_fields(request, work, outcome, error, seconds)))


def named(batch: Sequence[Row[Work]]) -> list[str]:
    """The ids of a batch's requests, for the log."""
    return [row.job.request.origin.request_id for row in batch[:MAX_NAMED]]


def _outcome(error: CarouselError) -> str:
    return FAILED if error.status >= 500 else REFUSED


def _blame(error: BaseException | None) -> tuple[str | None, bool]:
    """An error's code, and whether it is ours."""
    if error is None:
        return None, False
    if isinstance(error, CarouselError):
        return error.code, error.status >= 500
    return type(error).__name__, True


def _attributes(work: Work | None, outcome: str) -> Attributes:
    if work is None:
        return {"carousel.outcome": outcome}
    return {
        "carousel.outcome": outcome,
        "carousel.model": work.model.name,
        "carousel.version": work.model.version,
        "carousel.steps": _steps(work),
    }


def _steps(work: Work) -> int:
    return len(work.x) if isinstance(work, Job) else work.request.horizon


def _fields(
    request: Request | ForecastRequest,
    work: Work | None,
    outcome: str,
    error: CarouselError | None,
    seconds: float,
) -> dict[str, object]:
    origin, key = request.origin, request.key
    return {
        "protocol": origin.protocol,
        "request_id": origin.request_id,
        "tenant": key.tenant if key else "",
        "session_id": request.session_id,
        "model": work.model.name if work else None,
        "version": work.model.version if work else None,
        "steps": _steps(work) if work else None,
        "outcome": outcome,
        "code": error.code if error else None,
        "duration_ms": round(seconds * 1e3, 3),
    }
