"""OpenTelemetry traces by setting: a span a request, named after its route; nothing in it is anybody's data.

OpenTelemetry is imported only where `serving.otlp_endpoint` is set.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from recflow.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_EXPORT_SECONDS = 1.0  # for a batch of spans; a worker that ends waits no longer for a collector that is away

Headers = Sequence[tuple[bytes, bytes]]


class Tracer:
    """Makes spans and sends them in the background; what can't be sent is dropped."""

    def __init__(self, exporter: "SpanExporter", *, share: float) -> None:
        """Take where spans go and the share of the requests that are traced; callers' own decision goes first."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        with _switched_on():
            self._provider = TracerProvider(
                sampler=ParentBased(TraceIdRatioBased(share)),
                resource=Resource.create({"service.name": "recflow-storefront"}),
                shutdown_on_exit=False,
            )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("recflow")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return the tracer that the settings ask for, if they do."""
        endpoint = settings.serving.otlp_endpoint
        if endpoint is None:
            return None
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS)
        return cls(exporter, share=settings.serving.trace_share)

    def span(
        self,
        route: str,
        headers: Headers,
        *,
        seconds: float,
        attributes: Mapping[str, Any],
        stages: Sequence[tuple[str, float, int]] = (),
    ) -> None:
        """Record a request that has just been answered, below the caller's own span where it sent one.

        Args:
            route: the span's name.
            headers: of the request.
            seconds: that it took.
            attributes: of the span; the status is among them.
            stages: name, seconds and end (nanoseconds since 1970) of what was done for all that were answered together.
        """
        from opentelemetry.trace import StatusCode, set_span_in_context

        ended = time.time_ns()
        sent = {name.decode(): value.decode("latin-1") for name, value in headers if name in _PROPAGATED}
        context = self._propagator.extract(sent) if sent else None
        span = self._tracer.start_span(
            route, context, kind=self._kind, attributes=attributes, start_time=ended - int(seconds * 1e9)
        )
        if attributes["http.response.status_code"] >= 500:
            span.set_status(StatusCode.ERROR)
        below = set_span_in_context(span)
        for name, took, end in stages:
            self._tracer.start_span(name, below, start_time=end - int(took * 1e9)).end(end)
        span.end(ended)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


@contextlib.contextmanager
def _switched_on() -> Iterator[None]:
    """Lift the switch that keeps libraries from tracing unasked: this one is asked."""
    switch = os.environ.pop("OTEL_SDK_DISABLED", None)
    try:
        yield
    finally:
        if switch is not None:
            os.environ["OTEL_SDK_DISABLED"] = switch


_PROPAGATED = (b"traceparent", b"tracestate")
