"""What Carousel counts, for Prometheus; BentoML's /metrics shows it.

The workers of a service count in files that /metrics adds up (prometheus_client's multiprocess
mode; BentoML sets its folder in each worker's environment). Live sessions are the store's, which
the workers share: the latest value counts, never the sum, and it is set when /metrics is asked.
No metric is labelled by session, tenant or path: each would be a time series that is never freed.
"""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from service.errors import CarouselError


class Metrics:
    """The metrics of one process; one object for each registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.live = Gauge(
            "carousel_sessions_live",
            "Live sessions in the store, of all workers and machines that share it.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.opened = Counter(
            "carousel_sessions_opened", "Sessions that began or were restored.", registry=registry
        )
        self.expired = Counter(
            "carousel_sessions_expired", "Sessions that were idle too long.", registry=registry
        )
        self._refused = Counter(
            "carousel_requests_refused",
            "Requests and lines of streams that got an error, by its code; a full server's by what "
            "is full.",
            ["reason"],
            registry=registry,
        )

    def refused(self, error: CarouselError) -> None:
        limit = error.data.get("limit")
        self._refused.labels(f"{error.code}_{limit}" if limit else error.code).inc()


def unread_metrics() -> Metrics:
    """Of an engine that serves nobody's /metrics."""
    return Metrics(CollectorRegistry())
