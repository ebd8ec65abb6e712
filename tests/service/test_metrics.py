"""The metrics of several workers, as /metrics adds them up."""

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

ROOT = Path(__file__).parents[2]
WORKER = """
import sys
from service.errors import CapacityError
from service.metrics import Metrics

metrics = Metrics()
metrics.live.set(int(sys.argv[1]))
metrics.opened.inc(3)
metrics.expired.inc(2)
metrics.refused(CapacityError("full", limit="queue"))
"""


def test_what_workers_count_is_added_and_live_sessions_are_not(tmp_path: Path) -> None:
    """They share the store: the latest count of it stands."""
    for live in (7, 5):
        subprocess.run(
            [sys.executable, "-c", WORKER, str(live)],
            cwd=ROOT,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            check=True,
        )
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]
    assert registry.get_sample_value("carousel_sessions_live") == 5
    assert registry.get_sample_value("carousel_sessions_opened_total") == 6
    assert registry.get_sample_value("carousel_sessions_expired_total") == 4
    reason = {"reason": "overloaded_queue"}
    assert registry.get_sample_value("carousel_requests_refused_total", reason) == 2
