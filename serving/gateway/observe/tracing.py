"""Tracing: a span for each request and one for each attempt at an engine, in the client's own trace where it names one.

Off by default: then a request has no spans, and OpenTelemetry is not even imported. Spans are gathered and sent by a
thread of its SDK; one that cannot be sent is dropped. Nothing is done per chunk.
Context: https://www.w3.org/TR/trace-context/; attribute names: https://opentelemetry.io/docs/specs/semconv/gen-ai/.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from serving.gateway.http.asgi import Request
from serving.gateway.nouns import CallRecord, Outcome
from serving.gateway.observe.access import PROBES

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

HEADER = "traceparent"
#: What the tracing systems before us say of their own; passed on as it is.
STATE_HEADER = "tracestate"
SERVICE = "gpt-oss-serving-gateway"

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class Trace:
    """One request's place in a trace. This one has no spans."""

    def __init__(self, trace_id: str = "") -> None:
        #: As the log line has it; empty when no trace is kept.
        self.trace_id = trace_id

    def attempt(self, replica_id: str) -> AbstractContextManager[dict[str, str]]:
        """An engine has the call while inside; gives the headers that it gets."""
        return nullcontext({})

    def end(self, record: CallRecord) -> None:
        """The request is over."""


class Tracing:
    """Where traces begin. This one only reads what clients say of theirs, for the log."""

    def begin(self, request: Request) -> Trace:
        """The trace of a request that has just come in."""
        traceparent = request.header(HEADER)
        found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
        return Trace(found[1] if found else "")

    def close(self) -> None:
        """Send what is still here."""


class SpanTracing(Tracing):
    """Spans over OTLP/HTTP, for a share of the requests; a client that traces has decided for its own."""

    def __init__(self, exporter: SpanExporter, sample_ratio: float) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        # It would warn of a state that is none in the client's own words.
        logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
        sampler = ParentBased(TraceIdRatioBased(sample_ratio))
        self._provider = TracerProvider(sampler, Resource.create({"service.name": SERVICE}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(SERVICE)

    def begin(self, request: Request) -> Trace:
        if request.path in PROBES:
            return super().begin(request)
        given = {HEADER: request.header(HEADER), STATE_HEADER: request.joined(STATE_HEADER)}
        return _SpanTrace(self._tracer, request.method, {name: value for name, value in given.items() if value})

    def close(self) -> None:
        self._provider.shutdown()


class _SpanTrace(Trace):
    def __init__(self, tracer: Tracer, method: str, given: Mapping[str, str]) -> None:
        from opentelemetry.trace import SpanKind, format_trace_id, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = tracer
        self._method = method
        self._propagator = TraceContextTextMapPropagator()
        self._span: Span = tracer.start_span(method, self._propagator.extract(given), SpanKind.SERVER)
        self._context = set_span_in_context(self._span)
        super().__init__(format_trace_id(self._span.get_span_context().trace_id))

    @contextmanager
    def attempt(self, replica_id: str) -> Iterator[dict[str, str]]:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        span = self._tracer.start_span("engine", self._context, SpanKind.CLIENT, {"serving.replica": replica_id})
        headers: dict[str, str] = {}
        self._propagator.inject(headers, set_span_in_context(span))
        try:
            yield headers
        except BaseException as error:
            # Its kind alone: a text may quote a prompt.
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            span.end()

    def end(self, record: CallRecord) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.update_name(f"{self._method} {record.route.label}")
        self._span.set_attributes({name: value for name, value in _attributes(record).items() if value is not None})
        if record.outcome in (Outcome.FAILED, Outcome.CANCELLED):
            self._span.set_status(Status(StatusCode.ERROR, record.reason))
        self._span.end()


def _attributes(record: CallRecord) -> dict[str, str | int | float | None]:
    return {
        "http.route": record.route.label,
        "http.response.status_code": record.status,
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": record.usage.completion_tokens,
        "serving.request_id": record.request_id,
        "serving.tenant": record.tenant,
        "serving.outcome": record.outcome,
        "serving.reason": record.reason or None,
        "serving.waited_s": round(record.waited_s, 6),
        "serving.ttft_s": None if record.ttft_s is None else round(record.ttft_s, 6),
        "serving.retries": record.retries,
    }


def over_http(endpoint: str, sample_ratio: float) -> Tracing:
    """Spans to a collector's OTLP/HTTP address (`http://collector:4318/v1/traces`)."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return SpanTracing(OTLPSpanExporter(endpoint=endpoint), sample_ratio)
