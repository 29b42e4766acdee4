"""An OpenTelemetry collector: takes spans by OTLP over HTTP."""

from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@dataclass
class Collector:
    """Keeps the spans that it is sent."""

    spans: list[Span] = field(default_factory=list)
    services: set[str] = field(default_factory=set)

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/traces", self.take, methods=["POST"])])

    async def take(self, request: Request) -> Response:
        message = ExportTraceServiceRequest.FromString(await request.body())
        for resource in message.resource_spans:
            said = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.services.add(said["service.name"])
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return Response()


def attributes(span: Span) -> dict[str, object]:
    """A span's attributes as plain values."""
    return {item.key: plain(item.value) for item in span.attributes}


def plain(value: object) -> object:
    kind = value.WhichOneof("value")  # type: ignore[attr-defined]
    found = getattr(value, kind)
    return [plain(item) for item in found.values] if kind == "array_value" else found
