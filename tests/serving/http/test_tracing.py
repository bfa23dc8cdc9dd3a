"""Traces by setting: a span a request with its stages below it, in the caller's own trace, with nobody's data."""

import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from recflow.serving.http.routes import Call
from recflow.serving.http.shop import Shop
from tests.serving.http.conftest import Door, route

SENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """Takes spans over HTTP, as OpenTelemetry's own collector does."""

    def __init__(self) -> None:
        taken: list[bytes] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                taken.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None: ...

        self.taken = taken
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def spans(self) -> list[Any]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.taken]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


async def staged(shop: Shop, call: Call) -> Any:
    call.stages = [("features", 0.001, 2_000_000_000), ("rank", 0.002, 2_002_000_000)]
    return {"doubled": 2}


ROUTES = (
    route("staged", staged),
    route("thing", staged, method="GET", path="/v1/things/{item_id}", request=None, example_params={"item_id": "a"}),
)


def test_a_request_is_a_span_with_its_stages(open_door: Callable[..., Door], collector: Collector) -> None:
    door = open_door(routes=ROUTES, otlp_endpoint=collector.endpoint, trace_share=0.0)
    body = {"number": 1, "name": "a person"}
    door.ask("POST", "/v1/staged", json=body, headers={"traceparent": SENT, "tracestate": "a=b"})
    door.ask("POST", "/v1/staged", json=body)  # not traced: no share, and the caller doesn't ask
    door.shop.tracer.close()
    spans = {span.name: span for span in collector.spans()}
    assert spans.keys() == {"staged", "features", "rank"}
    request = spans["staged"]
    assert request.trace_id.hex() == SENT.split("-")[1]
    assert request.parent_span_id.hex() == SENT.split("-")[2]
    for stage, milliseconds in (("features", 1), ("rank", 2)):
        assert spans[stage].parent_span_id == request.span_id
        assert spans[stage].end_time_unix_nano - spans[stage].start_time_unix_nano == milliseconds * 1_000_000
    found = {attribute.key: attribute.value for attribute in request.attributes}
    assert found.keys() == {"http.route", "http.response.status_code"}
    assert b"person" not in b"".join(collector.taken)


def test_spans_name_routes_and_not_what_was_asked(open_door: Callable[..., Door], collector: Collector) -> None:
    door = open_door(routes=ROUTES, otlp_endpoint=collector.endpoint, trace_share=1.0)
    for path in ("/v1/things/a-thing-of-theirs?q=secret", "/made/up"):
        door.ask("GET", path, headers={"traceparent": "not one"})
    door.shop.tracer.close()
    assert {span.name for span in collector.spans()} == {"thing", "none", "features", "rank"}
    taken = b"".join(collector.taken)
    assert not any(word in taken for word in (b"theirs", b"secret", b"made"))


def test_by_default_nothing_is_traced(door: Door) -> None:
    assert door.shop.tracer is None


def test_a_collector_that_is_away_holds_up_nobody(open_door: Callable[..., Door]) -> None:
    door = open_door(routes=ROUTES, otlp_endpoint="http://127.0.0.1:9/v1/traces", trace_share=1.0)
    for _ in range(100):
        assert door.ask("POST", "/v1/staged", json={"number": 1}).status_code == 200
