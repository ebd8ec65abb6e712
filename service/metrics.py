"""What Carousel counts, for Prometheus; BentoML's /metrics shows it.

Rules
- The workers of a service count in files that /metrics adds up (prometheus_client's multiprocess
  mode; BentoML sets its folder in each worker's environment). Counters and histograms are sums
  over all workers, those that died too; gauges count living workers only.
- What happens with every request or batch is counted in plain numbers, and written to those files
  once a second and when /metrics is asked (`publish`). One observation of prometheus_client's own
  costs 2 us there, a plain one 0.05 us. So what other workers counted may be a second old, and a
  worker that is killed takes up to a second of its counts along.
- Live sessions are the store's, which the workers share: the latest value counts, never the sum,
  and it is set when /metrics is asked.
- No metric is labelled by session, tenant or path: each would be a time series that is never
  freed. `model` and `version` are those that were loaded here, `protocol` one of ours.

docs/observing.md has the table of all metrics; a test compares it with a server's.
"""

import glob
import os
import time
from collections import Counter as Tallies
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.errors import CarouselError, StepConflictError

# From what a step of a small model takes to what a client waits for; 1, 2.5, 5 a decade.
SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
ROWS = tuple(float(2**exponent) for exponent in range(11))  # 1 .. 1024; the default batch is 256
MODEL = ("model", "version")
PUBLISH_PERIOD_S = 1.0  # scrapes come every 5 to 60 s
FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class _Distribution(Histogram):
    """A histogram that takes many observations at once, which the library has no name for."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """`counts` of each bucket alone, and the sum of what was observed."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class _Durations(Summary):
    """A count and a sum that take many observations at once."""

    def add(self, count: int, total: float) -> None:
        self._count.inc(count)
        self._sum.inc(total)


@dataclass(slots=True)
class Duration:
    """How often, and how long in all."""

    count: int = 0
    seconds: float = 0.0


class Samples:
    """The metrics at one moment."""

    def __init__(self, found: Mapping[tuple[str, frozenset[tuple[str, str]]], float]) -> None:
        self._found = found

    def of(self, name: str, **labels: str) -> float:
        """0 where there is none."""
        return self._found.get((name, frozenset(labels.items())), 0.0)


class Tally:
    """What a histogram is to hold, until it is published; `add(value)` is a list's append."""

    __slots__ = ("_bounds", "_labels", "_many", "_target", "_values", "add")

    def __init__(
        self, target: _Distribution, bounds: Sequence[float] = SECONDS, labels: Sequence[str] = ()
    ) -> None:
        self._target = target
        self._labels = labels
        self._bounds = np.array(bounds)
        self._values: list[float] = []
        self._many: list[tuple[float, int]] = []
        self.add = self._values.append

    def add_many(self, value: float, count: int) -> None:
        """The same value, so often."""
        self._many.append((value, count))

    def publish(self) -> None:
        if self._values or self._many:
            values = np.array([*self._values, *(value for value, _ in self._many)])
            weights = np.array([*(1 for _ in self._values), *(count for _, count in self._many)])
            self._values.clear()
            self._many.clear()
            places = np.searchsorted(self._bounds, values)  # of the first bound that is no less
            counts = np.bincount(places, weights, len(self._bounds) + 1)
            target = self._target.labels(*self._labels) if self._labels else self._target
            target.add(counts.tolist(), float(values @ weights))


class OfModel:
    """What is counted of one version of a model."""

    __slots__ = ("begun", "ends", "forecast", "many", "parts", "rows", "run_s", "steps")

    def __init__(self, rows: Tally, run_s: Tally) -> None:
        self.rows = rows
        self.run_s = run_s
        self.steps = 0
        self.forecast = 0
        self.begun = 0
        # Of requests: (protocol, outcome) -> seconds; of blocks how many.
        self.ends: dict[tuple[str, str], list[float]] = {}
        self.many: Tallies[tuple[str, str]] = Tallies()
        self.parts: dict[str, Duration] = {}

    def ended_many(self, protocol: str, outcome: str, seconds: float, count: int) -> None:
        """As `ended`, of requests that came and ended together."""
        self.many[protocol, outcome] += count
        self.spent(outcome, count, count * seconds)

    def ended(self, protocol: str, outcome: str, seconds: float) -> None:
        found = self.ends.get((protocol, outcome))
        if found is None:
            self.ends[protocol, outcome] = [seconds]
        else:
            found.append(seconds)

    def spent(self, part: str, count: int, seconds: float) -> None:
        """`count` requests spent so long in a part of their way, in all."""
        found = self.parts.setdefault(part, Duration())
        found.count += count
        found.seconds += seconds


class _Latencies(dict[str, Tally]):
    """protocol -> its latencies, in seconds."""

    def __init__(self, target: _Distribution) -> None:
        super().__init__()
        self._target = target

    def __missing__(self, protocol: str) -> Tally:
        found = self[protocol] = Tally(self._target, labels=[protocol])
        return found


class Metrics:
    """The metrics of one process; one object for each registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, what: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"carousel_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str, labels: Sequence[str] = (), mode: str = "livesum") -> Gauge:
            return Gauge(
                f"carousel_{name}",
                what,
                labels,
                multiprocess_mode=mode,  # type: ignore[arg-type]
                registry=registry,
            )

        def histogram(
            name: str, what: str, labels: Sequence[str] = (), bounds: Sequence[float] = SECONDS
        ) -> _Distribution:
            return _Distribution(
                f"carousel_{name}", what, labels, buckets=bounds, registry=registry
            )

        self.live = gauge(
            "sessions_live",
            "Live sessions in the store, of all workers and machines that share it.",
            mode="mostrecent",
        )
        self.opened = counter("sessions_opened", "Sessions that began or were restored.")
        self.expired = counter("sessions_expired", "Sessions that were idle too long.")
        self._begun = counter(
            "sessions_begun", "Sessions that began or were restored, by where they began.", MODEL
        )
        self._steps = counter("steps", "Steps of sessions that were committed.", MODEL)
        self._forecast_steps = counter("forecast_steps", "Steps that were forecast.", MODEL)
        self._requests = counter(
            "requests",
            "Requests that reached the engine, each line or frame of a stream for itself, by what "
            "became of them: done, replayed (the last reply again), refused (4xx), failed (5xx), "
            "abandoned (the client left first). `model` is empty where none was found.",
            ["protocol", *MODEL, "outcome"],
        )
        self._refused = counter(
            "requests_refused",
            "Requests and lines of streams that got an error, by its code; a full server's by what "
            "is full.",
            ["reason"],
        )
        self._replayed = counter("requests_replayed", "Retries that got the last reply again.")
        self._conflicts = counter("step_conflicts", "Requests whose step was not the session's.")
        self._lost = counter("commits_lost", "Commits that another was faster than; run again.")
        self._store_errors = counter("store_errors", "Calls of the store that failed.", ["kind"])
        self._request_s = histogram(
            "request_seconds",
            "From a request's arrival at the engine to its answer, whatever the answer.",
            ["protocol"],
        )
        self._rows = histogram(
            "batch_rows", "Rows that ran together: requests, and samples.", MODEL, ROWS
        )
        self._run_s = histogram("run_seconds", "The model's run of a batch.", MODEL)
        self.wait_s = Tally(
            histogram("batch_wait_seconds", "From a request's arrival to its first batch.")
        )
        self.read_s = Tally(
            histogram("store_read_seconds", "The store's read of a batch's sessions.")
        )
        self.commit_s = Tally(
            histogram("commit_seconds", "The store's commit of a batch's sessions.")
        )
        self._parts = _Durations(
            "carousel_model_seconds",
            "What requests took, by part: done, replayed, refused, failed, abandoned (from arrival "
            "to such an end); wait (for a batch); read, run, commit (of a batch, by each request "
            "in it).",
            [*MODEL, "part"],
            registry=registry,
        )
        self._last = gauge(
            "model_last_request_timestamp_seconds", "When a request last ended.", MODEL, "max"
        )
        self._registry = registry
        self._streams = gauge(
            "streams_open", "Requests and connections that stream, by protocol.", ["protocol"]
        )
        self._queue = gauge("queue_depth", "Requests and forecasts that wait or run.")
        self._workers = gauge("workers", "Processes that answer.")
        self._draining = gauge("draining", "Of them, those that are shutting down.")
        self._golden = gauge(
            "model_golden_passed",
            "1: this version replayed its golden sequences here, and is served. 0: it is refused.",
            MODEL,
            mode="livemostrecent",
        )
        for kind in ("unavailable", "full"):  # there from the start, or a rate misses the first
            self._store_errors.labels(kind)
        self._models: dict[str, OfModel] = {}
        self.latency_s = _Latencies(self._request_s)  # by protocol
        self.nowhere = self.of("", "")  # requests of which no model was found
        self._open: dict[str, int] = {}
        self._judged: dict[str, bool] = {}

    # What is counted at once: it is rare --------------------------------------------------------

    def refused(self, error: CarouselError) -> None:
        """An error that is sent to a client."""
        limit = error.data.get("limit")
        self._refused.labels(f"{error.code}_{limit}" if limit else error.code).inc()
        if isinstance(error, StepConflictError):
            self._conflicts.inc()

    def store_failed(self, code: str) -> None:
        """A call of the store that raised the error of this code."""
        self._store_errors.labels(code.removeprefix("store_")).inc()

    def lost_commit(self) -> None:
        self._lost.inc()

    # What is counted in plain numbers -----------------------------------------------------------

    def of(self, name: str, version: str) -> OfModel:
        """What is counted of one version; it was loaded here."""
        reference = f"{name}:{version}"
        found = self._models.get(reference)
        if found is None:
            labels = (name, version)
            found = self._models[reference] = OfModel(
                Tally(self._rows, ROWS, labels), Tally(self._run_s, labels=labels)
            )
        return found

    def stream_opened(self, protocol: str) -> None:
        self._open[protocol] = self._open.get(protocol, 0) + 1

    def stream_closed(self, protocol: str) -> None:
        self._open[protocol] -= 1

    # What /metrics shows ------------------------------------------------------------------------

    def publish(
        self, queue_depth: int, is_draining: bool, served: Iterable[str], broken: Iterable[str]
    ) -> None:
        """Write what was counted since the last call, and how things stand now.

        Args:
            served, broken: `name:version` of what is served here, and of what is refused.
        """
        for reference, counts in self._models.items():
            labels = _labels_of(reference)
            for target, name in (
                (self._steps, "steps"),
                (self._forecast_steps, "forecast"),
                (self._begun, "begun"),
            ):
                if count := getattr(counts, name):
                    target.labels(*labels).inc(count)
                    setattr(counts, name, 0)
            for (_, outcome), times in counts.ends.items():
                counts.spent(outcome, len(times), sum(times))
            if counts.ends or counts.many:
                self._last.labels(*labels).set(time.time())
            tallies = Tallies({place: len(times) for place, times in counts.ends.items()})
            tallies.update(counts.many)
            for (protocol, outcome), count in tallies.items():
                self._requests.labels(protocol, *labels, outcome).inc(count)
                if outcome == "replayed":
                    self._replayed.inc(count)
            counts.ends.clear()
            counts.many.clear()
            for part, spent in counts.parts.items():
                self._parts.labels(*labels, part).add(spent.count, spent.seconds)
            counts.parts.clear()
            counts.rows.publish()
            counts.run_s.publish()
        for tally in (self.wait_s, self.read_s, self.commit_s, *self.latency_s.values()):
            tally.publish()
        for protocol, count in self._open.items():
            self._streams.labels(protocol).set(count)
        self._queue.set(queue_depth)
        self._workers.set(1)
        self._draining.set(int(is_draining))
        self._judge({name: True for name in served} | {name: False for name in broken})

    def samples(self) -> "Samples":
        """What all workers of the service have published. Reads their files: not on the loop."""
        folder = os.environ.get(FOLDER)
        registry = self._registry
        if values.ValueClass._multiprocess and folder:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        return Samples(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in registry.collect()
                for sample in family.samples
            }
        )

    def _judge(self, now: Mapping[str, bool]) -> None:
        for reference in self._judged.keys() - now.keys():
            self._forget_golden(_labels_of(reference))
        for reference, passed in now.items():
            if self._judged.get(reference) is not passed:
                self._golden.labels(*_labels_of(reference)).set(int(passed))
        self._judged = dict(now)

    def _forget_golden(self, labels: tuple[str, str]) -> None:
        """No sample any more of a version that is not here.

        The files of the multiprocess mode forget nothing, and `remove` does nothing there but
        warn; but of this mode's gauges, one whose time is 0 is not shown.
        """
        if values.ValueClass._multiprocess:
            self._golden.labels(*labels)._value.set(0.0, 0.0)
        else:
            self._golden.remove(*labels)


def _labels_of(reference: str) -> tuple[str, str]:
    name, _, version = reference.partition(":")
    return name, version


def forget_dead_workers() -> None:
    """Take the gauges of processes away that ended without saying so, as by kill -9."""
    folder = os.environ.get(FOLDER)
    for path in glob.glob(os.path.join(glob.escape(folder), "gauge_live*.db")) if folder else ():
        pid = Path(path).stem.rpartition("_")[2]
        if not Path("/proc", pid).exists():
            mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]


def unread_metrics() -> Metrics:
    """Of an engine that serves nobody's /metrics."""
    return Metrics(CollectorRegistry())
