"""The metrics of several workers, as /metrics adds them up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from service.metrics import FOLDER, Metrics, forget_dead_workers

ROOT = Path(__file__).parents[2]
WORKER = """
import sys
from service.errors import CapacityError, StepConflictError
from service.metrics import Metrics

metrics = Metrics()
metrics.live.set(int(sys.argv[1]))
metrics.opened.inc(3)
metrics.expired.inc(2)
metrics.refused(CapacityError("full", limit="queue"))
metrics.refused(StepConflictError("no"))
metrics.store_failed("store_full")
model = metrics.of("sine", "v1")
model.steps += 7
model.rows.add(4)
model.rows.add(300)
model.ended("predict", "done", 0.1)
model.ended("predict", "replayed", 0.3)
metrics.latency_s["predict"].add(0.0001)
metrics.latency_s["predict"].add(0.0002)
metrics.latency_s["predict"].add(99.0)
metrics.stream_opened("ws")
metrics.publish(5, False, ["sine:v1", "old:v0"], ["bad:v9"])
metrics.publish(5, False, ["sine:v1"], ["bad:v9"])
"""
SINE = {"model": "sine", "version": "v1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers left, which ended without a word."""
    folder = tmp_path_factory.mktemp("metrics")
    for live in (7, 5):
        subprocess.run(
            [sys.executable, "-c", WORKER, str(live)],
            cwd=ROOT,
            env={**os.environ, FOLDER: str(folder)},
            check=True,
        )
    return folder


def collected(folder: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return registry


def test_what_workers_count_is_added_and_live_sessions_are_not(folder: Path) -> None:
    """They share the store: the latest count of it stands."""
    value = collected(folder).get_sample_value
    assert value("carousel_sessions_live") == 5
    assert value("carousel_sessions_opened_total") == 6
    assert value("carousel_sessions_expired_total") == 4
    assert value("carousel_requests_refused_total", {"reason": "overloaded_queue"}) == 2
    assert value("carousel_step_conflicts_total") == 2
    assert value("carousel_store_errors_total", {"kind": "full"}) == 2
    assert value("carousel_store_errors_total", {"kind": "unavailable"}) == 0
    assert value("carousel_steps_total", SINE) == 14
    for outcome in ("done", "replayed"):
        labels = {"protocol": "predict", "outcome": outcome, **SINE}
        assert value("carousel_requests_total", labels) == 2
    assert value("carousel_requests_replayed_total") == 2


def test_histograms_are_added_bucket_by_bucket(folder: Path) -> None:
    """A value on a bound counts below it, one beyond all bounds in the last bucket alone."""
    value = collected(folder).get_sample_value
    buckets = {
        bound: value("carousel_request_seconds_bucket", {"protocol": "predict", "le": bound})
        for bound in ("0.0001", "0.00025", "10.0", "+Inf")
    }
    assert buckets == {"0.0001": 2, "0.00025": 4, "10.0": 4, "+Inf": 6}
    assert value("carousel_request_seconds_count", {"protocol": "predict"}) == 6
    total = value("carousel_request_seconds_sum", {"protocol": "predict"})
    assert total == pytest.approx(2 * 99.0003)
    assert value("carousel_batch_rows_sum", SINE) == 608


def test_gauges_are_of_the_living(folder: Path) -> None:
    """A worker that was killed is counted until its files are looked at, and its counters stay."""
    text = generate_latest(collected(folder)).decode()
    assert "carousel_workers 2.0" in text
    assert 'carousel_streams_open{protocol="ws"} 2.0' in text
    assert 'carousel_model_golden_passed{model="bad",version="v9"} 0.0' in text
    assert 'carousel_model_golden_passed{model="sine",version="v1"} 1.0' in text
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        forget_dead_workers()
    value = collected(folder).get_sample_value
    for name in ("workers", "queue_depth", "draining"):
        assert value(f"carousel_{name}") is None
    assert value("carousel_sessions_opened_total") == 6
    assert value("carousel_sessions_live") == 5


def test_a_version_that_is_unloaded_has_no_golden_result_any_more(folder: Path) -> None:
    """Or its refusal would alarm for ever; in the files of several workers, and in one process."""
    assert 'model="old"' not in generate_latest(collected(folder)).decode()
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.publish(0, False, ["sine:v1"], ["sine:v2"])
    metrics.publish(0, False, ["sine:v1"], [])
    judged = {"model": "sine", "version": "v2"}
    assert registry.get_sample_value("carousel_model_golden_passed", SINE) == 1
    assert registry.get_sample_value("carousel_model_golden_passed", judged) is None


def test_what_was_published_is_not_published_again() -> None:
    """Counters and histograms go on from there."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.wait_s.add(0.2)
    metrics.of("sine", "v1").steps += 1
    metrics.of("sine", "v1").ended("predict", "done", 0.1)
    for _ in range(2):
        metrics.publish(0, True, [], [])
    assert registry.get_sample_value("carousel_batch_wait_seconds_count") == 1
    assert registry.get_sample_value("carousel_steps_total", SINE) == 1
    labels = {"protocol": "predict", "outcome": "done", **SINE}
    assert registry.get_sample_value("carousel_requests_total", labels) == 1
    assert registry.get_sample_value("carousel_draining") == 1
