"""What an engine tells of its requests and batches."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from service.batcher import SLICE_STEPS
from service.catalog import Catalog
from service.engine import Engine
from service.errors import InternalError, SessionGoneError, StepConflictError, StoreUnavailableError
from service.forecast import ForecastRequest
from service.job import Request
from service.logs import json_formatter
from service.metrics import Metrics
from service.model import Model
from service.origin import Origin
from service.session import SessionKey
from service.store import Outcome
from service.store.counted import CountedStore
from service.store.memory import MemoryStore
from service.tracing import Sampling, Tracing
from tests.service.test_engine import ROOM, Broken, Contended, Kept, request, rows, run, running


class Watched:
    """An engine, and what it tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing(Sampling.of({}), [self.exporter])
        self.engine: Engine

    async def value(self, name: str, **labels: str) -> float:
        """Of a metric, over all series that have these labels."""
        await self.engine.show_metrics()
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"carousel_{name}" and labels.items() <= sample.labels.items()
        )

    async def spans(self) -> list[ReadableSpan]:
        """All that have ended, in the order of their ends."""
        await asyncio.to_thread(self.tracing._provider.force_flush)
        return list(self.exporter.get_finished_spans())


@asynccontextmanager
async def watching(catalog: Catalog, **limits: Any) -> AsyncIterator[Watched]:
    watched = Watched()
    metrics = Metrics(watched.registry)
    async with running(catalog, metrics=metrics, tracing=watched.tracing, **limits) as engine:
        watched.engine = engine
        yield watched
    await watched.tracing.close()


def test_each_request_is_counted_once_by_what_became_of_it(sine: Model) -> None:
    """A retry is replayed, a conflict refused; steps are those that were committed."""

    async def scenario() -> None:
        async with watching(Catalog([sine])) as watched:
            engine = watched.engine
            await engine.predict(request("s", rows(3), 0))
            await engine.predict(request("s", rows(3), 0))
            with pytest.raises(StepConflictError):
                await engine.predict(request("s", rows(3), 9))
            with pytest.raises(SessionGoneError):
                await engine.predict(request("t", rows(3), 9))
            await engine.predict(structs.replace(request("u", rows(1)), ends=True))
            assert await watched.value("requests_total") == 5
            of_sine = {"model": "sine-cell", "version": sine.version}
            assert await watched.value("requests_total", outcome="done", **of_sine) == 2
            assert await watched.value("requests_total", outcome="replayed", **of_sine) == 1
            assert await watched.value("requests_total", outcome="refused", **of_sine) == 2
            assert await watched.value("requests_replayed_total") == 1
            assert await watched.value("steps_total", **of_sine) == 4
            assert await watched.value("sessions_begun_total", **of_sine) == 1
            assert await watched.value("sessions_opened_total") == 1
            assert await watched.value("request_seconds_count") == 5

    run(scenario())


def test_a_request_of_no_model_is_counted_without_one(sine: Model) -> None:
    """The client's names are no labels."""

    async def scenario() -> None:
        async with watching(Catalog([sine])) as watched:
            with pytest.raises(Exception, match="is not served"):
                await watched.engine.predict(request("s", rows(1), model="made-up"))
            assert await watched.value("requests_total", model="", outcome="refused") == 1
            assert await watched.value("requests_total", model="made-up") == 0

    run(scenario())


def test_a_long_request_waits_once_and_runs_in_many_batches(sine: Model) -> None:
    """Its wait is that for its first batch."""

    async def scenario() -> None:
        async with watching(Catalog([sine])) as watched:
            await watched.engine.predict(request("long", rows(3 * SLICE_STEPS)))
            assert await watched.value("batch_wait_seconds_count") == 1
            assert await watched.value("run_seconds_count") == 3
            assert await watched.value("batch_rows_sum") == 3
            assert await watched.value("commit_seconds_count") == 1
            assert await watched.value("store_read_seconds_count") == 1
            names = [span.name for span in await watched.spans()]
            assert names.count("batch") == names.count("run") == 3
            assert names.count("request") == names.count("commit") == 1

    run(scenario())


def test_who_left_before_it_ran_is_abandoned(sine: Model) -> None:
    """And its span ends."""

    async def scenario() -> None:
        async with watching(Catalog([sine])) as watched:
            jobs = [await watched.engine.submit(request("s", rows(1))) for _ in range(3)]
            watched.engine.abandon(jobs[1])
            await jobs[2].future
            assert await watched.value("requests_total", outcome="abandoned") == 1
            assert await watched.value("requests_total", outcome="done") == 2
            ended = [span for span in await watched.spans() if span.name == "request"]
            assert len(ended) == 3

    run(scenario())


def test_a_lost_commit_is_counted_and_its_request_once(sine: Model) -> None:
    """It ran twice; one answer."""

    async def scenario() -> None:
        store = Contended(1, lambda: rival())

        async def rival() -> None:
            async with running(Catalog([sine]), store=Kept(store)) as other:
                await other.predict(request("s", rows(2)))

        async with watching(Catalog([sine]), store=store) as watched:
            await watched.engine.predict(request("s", rows(1)))
            assert await watched.value("commits_lost_total") == 1
            assert await watched.value("requests_total") == 1
            assert await watched.value("steps_total") == 1
            assert await watched.value("run_seconds_count") == 2

    run(scenario())


def test_an_error_of_ours_is_a_failure_and_marks_its_spans(sine: Model) -> None:
    """The batch ends all the same, and the next one is another."""

    async def scenario() -> None:
        store = Broken(**ROOM)
        async with watching(Catalog([sine]), store=store) as watched:
            store.broken = True
            with pytest.raises(InternalError):
                await watched.engine.predict(request("s", rows(1)))
            store.broken = False
            await watched.engine.predict(request("s", rows(1)))
            assert await watched.value("requests_total", outcome="failed") == 1
            assert await watched.value("requests_total", outcome="done") == 1
            spans = await watched.spans()
            failed = [span.name for span in spans if not span.status.is_ok and not is_unset(span)]
            assert failed == ["commit", "request"]
            assert [span.name for span in spans].count("batch") == 2

    run(scenario())


def is_unset(span: ReadableSpan) -> bool:
    return span.status.status_code.name == "UNSET"


def test_a_forecast_is_one_request_and_its_samples_are_rows(sine: Model) -> None:
    """Its steps are counted apart: they move no session."""

    async def scenario() -> None:
        async with watching(Catalog([sine])) as watched:
            engine = watched.engine
            await engine.predict(request("s", rows(2)))
            asked = ForecastRequest("", "s", 6, origin=Origin("r", "forecast"))
            forecast = await engine.forecast(asked)
            while await engine.read_forecast(forecast):
                continue
            alone = await engine.forecast(replace(asked, horizon=1))  # its last reply says it
            assert await engine.read_forecast(alone)
            assert await watched.value("requests_total", protocol="forecast", outcome="done") == 2
            assert await watched.value("forecast_steps_total") == 5
            assert await watched.value("steps_total") == 2
            left = await engine.forecast(replace(asked, horizon=1000))
            engine.abandon(left)
            await engine.predict(request("t", rows(1)))
            assert await watched.value("requests_total", outcome="abandoned") == 1

    run(scenario())


def test_store_errors_are_counted_whoever_called(sine: Model) -> None:
    """A batch, a look-up; a disk that is full is one, too."""

    class Failing(MemoryStore):
        async def get(self, keys: Any) -> Any:
            raise StoreUnavailableError("away")

    async def scenario() -> None:
        failed: list[str] = []
        store = CountedStore(Failing(**ROOM), failed.append)
        async with watching(Catalog([sine]), store=store) as watched:
            with pytest.raises(StoreUnavailableError):
                await watched.engine.predict(request("s", rows(1)))
            with pytest.raises(StoreUnavailableError):
                await watched.engine.look_up(SessionKey("", "s"))
        assert failed == ["store_unavailable"] * 2

        class Full(MemoryStore):
            async def commit(self, commits: Any) -> list[Outcome]:
                return [Outcome.NO_SPACE for _ in commits]

        async with watching(
            Catalog([sine]), store=CountedStore(Full(**ROOM), failed.append)
        ) as watched:
            with pytest.raises(Exception, match="disk of the sessions is full"):
                await watched.engine.predict(request("s", rows(1)))
            assert await watched.value("requests_total", outcome="failed") == 1
        assert failed[2:] == ["store_full"]

    run(scenario())


def test_a_batch_of_which_nothing_is_traced_makes_no_span(sine: Model) -> None:
    """And of one that is partly traced, only that part is linked."""

    async def scenario() -> None:
        async with watching(Catalog([sine])) as watched:
            given = [from_trace(f"s-{n}", n == 2) for n in range(4)]
            await asyncio.gather(*map(watched.engine.predict, given))
            spans = await watched.spans()
            assert sorted(s.name for s in spans) == ["batch", "commit", "read", "request", "run"]
            batch = next(span for span in spans if span.name == "batch")
            assert len(batch.links) == 1
            assert (batch.attributes or {})["carousel.rows"] == 4
            await watched.engine.predict(from_trace("s-9", False))
            assert len(await watched.spans()) == len(spans)

    run(scenario())


def from_trace(session_id: str, is_sampled: bool) -> Request:
    parent = f"00-{'a' * 32}-{'b' * 16}-0{int(is_sampled)}"
    origin = Origin("r", "predict", traceparent=parent)
    return structs.replace(request(session_id, rows(1)), origin=origin)


def test_an_access_line_holds_no_row(sine: Model, caplog: pytest.LogCaptureFixture) -> None:
    """Ids, what became of it, how long it took."""

    async def scenario() -> None:
        async with watching(Catalog([sine])) as watched:
            x = np.array([[0.31415926]])
            await watched.engine.predict(request("s", x, 0))
            with pytest.raises(StepConflictError):
                await watched.engine.predict(request("s", x, 7))

    with caplog.at_level(logging.INFO, "carousel.access"):
        run(scenario())
    lines = [json.loads(json_formatter().format(record)) for record in caplog.records]
    told = [line for line in lines if line["event"] == "request"]
    assert [(line["outcome"], line.get("code")) for line in told] == [
        ("done", None),
        ("refused", "step_conflict"),
    ]
    assert told[0]["session_id"] == "s"
    assert "0.3141" not in json.dumps(lines)


def test_an_error_in_a_batch_is_logged_with_the_ids_of_its_requests(
    sine: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """So that a client's complaint leads to the traceback."""

    async def scenario() -> None:
        store = Broken(**ROOM)
        async with watching(Catalog([sine]), store=store) as watched:
            store.broken = True
            asked = structs.replace(request("s", rows(1)), origin=Origin("complaint-7", "predict"))
            with pytest.raises(InternalError):
                await watched.engine.predict(asked)

    run(scenario())
    (line,) = [json.loads(json_formatter().format(one)) for one in caplog.records]
    assert line["request_ids"] == ["complaint-7"]
    assert line["code"] == "internal"
    assert "disk full" in line["exception"]
