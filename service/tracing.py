"""Spans for OpenTelemetry: of requests, of the batches they ran in, of a batch's parts.

Rules
- Off unless the standard environment variables ask for it: OTEL_TRACES_EXPORTER (`otlp`,
  `console`), or OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT. The other
  OTEL_* variables of the SDK (headers, resource, sampler, batches, limits) mean what they say.
- A request's span has the parent that its `traceparent` names. A batch runs requests of many
  traces: its span is a child of the first that is traced, and linked to the spans of them all.
- Whether a request is traced is decided when it arrives, by OTEL_TRACES_SAMPLER, without the SDK:
  the decision takes 0.2 us, the SDK's own would take 10. What is not traced makes no object.
- Nothing of x or y is in a span, nor who sent it, nor a session id: traces are sent away, and ids
  name machines and people. The request id leads to the line of the log that has the session.
- Spans are exported by a thread of the SDK (OTEL_BSP_*); where no collector answers they are
  dropped, and requests go on.

BentoML's own `tracing` configuration is of its own pages only, as our routes are answered before
its middlewares; no request gets two spans.
"""

import asyncio
import os
import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.trace import Span as Span  # ours to name: nobody else imports the library
from opentelemetry.util.types import AttributeValue

from service.errors import SettingsError
from service.origin import Origin

if TYPE_CHECKING:  # 80 ms of a core to import, which nobody should pay who does not trace
    from opentelemetry.sdk.trace.export import SpanExporter

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP = "http/protobuf"
EXPORTERS = ("otlp", "console", "none")
SAMPLERS = ("always_on", "always_off", "traceidratio")
PARENT = "parentbased_"
FLUSH_TIMEOUT_S = 5.0  # a server that stops does not wait longer for its collector
_RANDOM_BITS = 64  # of a trace id, by which the SDK's ratio decides as well

Attributes = Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which requests are traced."""

    bound: int  # a trace is kept whose id, its low 64 bits, is less
    asks_parent: bool  # where there is a parent, it decides

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Sampling":
        """As OTEL_TRACES_SAMPLER and its argument say; SettingsError if they say nothing known."""
        name = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or PARENT + "always_on"
        kind = name.removeprefix(PARENT)
        if kind not in SAMPLERS:
            known = [*SAMPLERS, *(PARENT + one for one in SAMPLERS)]
            raise SettingsError(f"OTEL_TRACES_SAMPLER={name} is not known, expected one of {known}")
        share = {"always_on": 1.0, "always_off": 0.0}.get(kind)
        if share is None:
            share = _share(environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1.0")
        return cls(round(share * 2**_RANDOM_BITS), name.startswith(PARENT))

    def keeps(self, traceparent: str | None) -> bool:
        """Whether a request is traced; `traceparent` as `Origin` has it."""
        if traceparent is None:
            return random.getrandbits(_RANDOM_BITS) < self.bound
        if self.asks_parent:
            return bool(int(traceparent[53:55], 16) & TraceFlags.SAMPLED)
        return int(traceparent[19:35], 16) < self.bound


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise SettingsError(f"OTEL_TRACES_SAMPLER_ARG={text}, expected a number from 0 to 1")
    return share


class Tracing:
    """Makes the spans of one process."""

    def __init__(self, sampling: Sampling, exporters: Sequence["SpanExporter"]) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        name = Resource({"service.name": "carousel", "service.instance.id": str(os.getpid())})
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # what is not to be traced never comes here
            resource=name.merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        for exporter in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._sampling = sampling
        self._tracer = self._provider.get_tracer("carousel")

    def request(self, origin: Origin) -> Span | None:
        """The span of a request, begun; None: it is not traced."""
        if not self._sampling.keeps(origin.traceparent):
            return None
        parent = _parent(origin)
        return self._tracer.start_span(
            "request",
            set_span_in_context(parent) if parent else None,
            SpanKind.SERVER,
            {"carousel.protocol": origin.protocol, "carousel.request_id": origin.request_id},
        )

    def batch(self, requests: Sequence[Span], rows: int) -> Span:
        """The span of a batch that these requests, one or more, run in, with others."""
        links = [Link(span.get_span_context()) for span in requests]
        attributes = {"carousel.jobs": rows}
        return self._tracer.start_span(
            "batch", set_span_in_context(requests[0]), SpanKind.INTERNAL, attributes, links
        )

    def part(self, batch: Span, name: str) -> Span:
        """A span inside a batch's."""
        return self._tracer.start_span(name, set_span_in_context(batch))

    async def close(self) -> None:
        """Send what is left, within `FLUSH_TIMEOUT_S`."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        for _ in range(round(FLUSH_TIMEOUT_S / 0.05)):
            if not thread.is_alive():
                return
            await asyncio.sleep(0.05)


def end_span(span: Span, attributes: Attributes, code: str | None, is_ours: bool) -> None:
    """End a span.

    Args:
        code: of the error that it ended with; None: with none.
        is_ours: the error is no client's, so the span is marked as failed.
    """
    span.set_attributes(attributes)
    if code is not None:
        span.set_attribute("error.type", code)
        if is_ours:
            span.set_status(Status(StatusCode.ERROR, code))
    span.end()


def open_tracing(environ: Mapping[str, str]) -> Tracing | None:
    """What the OTEL_* variables ask for; None: nothing.

    Raises:
        SettingsError: they ask for what is not there.
    """
    names = check_tracing(environ)
    if not names:
        return None
    return Tracing(Sampling.of(environ), [_exporter(name) for name in names])


def check_tracing(environ: Mapping[str, str]) -> list[str]:
    """The exporters that are asked for; raises as `open_tracing`."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    endpoint = next((name for name in ENDPOINTS if environ.get(name)), None)
    asked = environ.get("OTEL_TRACES_EXPORTER", "").strip() or ("otlp" if endpoint else "none")
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in EXPORTERS:
            raise SettingsError(
                f"OTEL_TRACES_EXPORTER={asked}, expected one of {list(EXPORTERS)}, or several "
                "with commas"
            )
    protocol = next((name for name in PROTOCOLS if environ.get(name)), None)
    if "otlp" in names and protocol and environ[protocol] != HTTP:
        raise SettingsError(
            f"{protocol}={environ[protocol]}, expected {HTTP}: spans are sent by HTTP here"
        )
    Sampling.of(environ)
    return [name for name in names if name != "none"]


def _exporter(name: str) -> "SpanExporter":
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\n")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _parent(origin: Origin) -> NonRecordingSpan | None:
    if origin.traceparent is None:
        return None
    _, trace_id, span_id, flags = origin.traceparent[:55].split("-")
    state = TraceState.from_header([origin.tracestate]) if origin.tracestate else None
    return NonRecordingSpan(
        SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)), state)
    )
