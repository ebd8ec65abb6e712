"""Which requests are traced, and what the OTEL_* variables may ask for."""

import asyncio
import random
import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    set_span_in_context,
)

from service.errors import SettingsError
from service.origin import Origin
from service.tracing import Sampling, Tracing, check_tracing, open_tracing

SDKS: dict[str, Sampler] = {
    "always_on": ALWAYS_ON,
    "always_off": ALWAYS_OFF,
    "traceidratio": TraceIdRatioBased(0.3),
    "parentbased_always_on": ParentBased(ALWAYS_ON),
    "parentbased_always_off": ParentBased(ALWAYS_OFF),
    "parentbased_traceidratio": ParentBased(TraceIdRatioBased(0.3)),
}


def sampling(name: str, share: str = "0.3") -> Sampling:
    return Sampling.of({"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": share})


@pytest.mark.parametrize("name", SDKS)
def test_a_request_with_a_parent_is_traced_as_the_sdk_would(name: str) -> None:
    """Of 500 random traces, flagged and not, each decision is the SDK's own sampler's."""
    source = random.Random(1)
    for _ in range(500):
        trace, span = source.getrandbits(128) or 1, source.getrandbits(64) or 1
        flags = source.choice((0, 1))
        parent = NonRecordingSpan(SpanContext(trace, span, True, TraceFlags(flags)))
        theirs = SDKS[name].should_sample(set_span_in_context(parent), trace, "request").decision
        kept = sampling(name).keeps(f"00-{trace:032x}-{span:016x}-{flags:02x}")
        assert kept == (theirs is Decision.RECORD_AND_SAMPLE)


@pytest.mark.parametrize(
    ("share", "least", "most"), [("0", 0, 0), ("1", 2000, 2000), (".3", 500, 700)]
)
def test_of_requests_without_a_parent_a_share_is_traced(share: str, least: int, most: int) -> None:
    """The share that is asked for."""
    ours = sampling("parentbased_traceidratio", share)
    assert least <= sum(ours.keeps(None) for _ in range(2000)) <= most


@pytest.mark.parametrize(
    ("environ", "exporters"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1/traces"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "otlp,console"}, ["otlp", "console"]),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, []),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, []),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, []),
    ],
)
def test_spans_are_made_where_the_standard_variables_ask_for_them(
    environ: dict[str, str], exporters: list[str]
) -> None:
    """And nowhere else."""
    assert check_tracing(environ) == exporters
    assert exporters or open_tracing(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin, expected one of"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL=grpc, expected http/protobuf",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "sometimes"},
            "OTEL_TRACES_SAMPLER=sometimes is not known, expected one of",
        ),
        (
            {
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_TRACES_SAMPLER": "traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "1%",
            },
            "OTEL_TRACES_SAMPLER_ARG=1%, expected a number from 0 to 1",
        ),
    ],
)
def test_what_cannot_be_done_stops_the_start(environ: dict[str, str], message: str) -> None:
    """With the variable and what it takes."""
    with pytest.raises(SettingsError) as caught:
        check_tracing(environ)
    assert message in caught.value.message


def test_the_state_of_a_trace_is_kept() -> None:
    """`tracestate` goes on with the span, as the Recommendation wants it."""
    exporter: SpanExporter = InMemorySpanExporter()
    tracing = Tracing(sampling("always_on"), [exporter])
    origin = Origin("r", "predict", f"00-{'a' * 32}-{'b' * 16}-01", "vendor=1")
    span = tracing.request(origin)
    assert span is not None
    assert span.get_span_context().trace_state.to_header() == "vendor=1"
    span.end()
    asyncio.run(tracing.close())


class Stuck(SpanExporter):
    """A collector that never answers."""

    def __init__(self) -> None:
        self.is_over = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.is_over.wait()
        return SpanExportResult.SUCCESS


def test_a_collector_that_hangs_does_not_keep_a_server_from_stopping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor from answering meanwhile: the loop goes on."""
    monkeypatch.setattr("service.tracing.FLUSH_TIMEOUT_S", 0.2)
    stuck = Stuck()
    tracing = Tracing(sampling("always_on"), [stuck])
    span = tracing.request(Origin("r", "predict"))
    assert span is not None
    span.end()

    async def scenario() -> int:
        turns = 0
        closing = asyncio.create_task(tracing.close())
        while not closing.done():
            turns += 1
            await asyncio.sleep(0.01)
        return turns

    assert asyncio.run(scenario()) > 5
    stuck.is_over.set()
