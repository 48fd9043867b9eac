"""A collector of spans on a real port: what OTLP/HTTP brings it is decoded and kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """The spans that have come, and where they are sent."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.spans: list[Span] = []

    def take(self, body: bytes) -> None:
        asked = ExportTraceServiceRequest.FromString(body)
        self.spans.extend(span for it in asked.resource_spans for scope in it.scope_spans for span in scope.spans)

    def of(self, trace_id: str) -> dict[str, Span]:
        """Name → span, of one trace."""
        return {span.name: span for span in self.spans if span.trace_id.hex() == trace_id}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Until the end of the `with`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_address[1]}/v1/traces")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
