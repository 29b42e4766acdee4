from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from capture.redaction import RedactConfig, Redactor
from gateway.config import GatewayConfig
from gateway.observers import opened_observers
from tests.gateway.test_relay import Stand, chat, stand
from tests.support.collector import Collector, attributes
from tests.support.serving import served

CHAT = "/v1/chat/completions"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@asynccontextmanager
async def traced(folder: Path, **tracing: object) -> AsyncIterator[tuple[Stand, Collector]]:
    """A gateway whose spans have all arrived when the context ends."""
    collector = Collector()
    async with stand(folder) as s, served(collector.app) as url:
        told = {"endpoint": f"{url}/v1/traces", **tracing}
        routes = {"a": {"url": "http://127.0.0.1:9"}}
        config = GatewayConfig.model_validate({"tracing": told, "routes": routes})
        async with opened_observers(config) as observers:
            s.serving.on_begun, s.serving.on_ended = observers.begun[0], observers.ended[0]
            yield s, collector


async def test_an_exchange_is_a_span_with_the_names_of_generative_ai(tmp_path: Path) -> None:
    async with traced(tmp_path, service="shop") as (s, collector):
        answer = await s.client.post(CHAT, json=chat("hi", temperature=0.5, max_tokens=9))

    (span,) = collector.spans
    said = attributes(span)
    assert span.name == "chat support"
    assert span.kind == Span.SPAN_KIND_CLIENT
    assert span.end_time_unix_nano > span.start_time_unix_nano
    assert collector.services == {"shop"}
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "support",
        "gen_ai.response.model": "teacher",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ["stop"],
        "http.response.status_code": 200,
        "retort.exchange_id": answer.headers["x-retort-exchange-id"],
        "retort.status": "completed",
    }
    assert expected.items() <= said.items()
    assert "hi" not in str(said.values())
    assert "intent" not in str(said)


async def test_it_hangs_between_the_clients_span_and_the_engines(tmp_path: Path) -> None:
    async with traced(tmp_path) as (s, collector):
        await s.client.post(CHAT, json=chat("hi"), headers={"traceparent": PARENT})

    (span,) = collector.spans
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == "00f067aa0ba902b7"
    assert s.engine.headers[0]["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"


async def test_a_failure_can_be_seen(tmp_path: Path) -> None:
    async with traced(tmp_path) as (s, collector):
        await s.client.post(CHAT, json=chat("fail"))

    (span,) = collector.spans
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "server_error"


async def test_text_is_there_only_where_it_was_asked_for_and_then_redacted(tmp_path: Path) -> None:
    async with traced(tmp_path, content=True) as (s, collector):
        s.serving.redactor = Redactor(RedactConfig(enabled=("email",)))
        await s.client.post(CHAT, json=chat("I am ann@example.org"))
        await s.client.post(CHAT, json=chat("private", store=False))

    one, other = (attributes(span) for span in collector.spans)
    assert "I am" in str(one["gen_ai.input.messages"])
    assert "ann@example.org" not in str(one)
    assert "intent" in str(one["gen_ai.output.messages"])
    assert not [name for name in other if "messages" in name]


async def test_a_client_that_samples_nothing_gets_no_span(tmp_path: Path) -> None:
    async with traced(tmp_path) as (s, collector):
        unsampled = PARENT.removesuffix("01") + "00"
        await s.client.post(CHAT, json=chat("hi"), headers={"traceparent": unsampled})

    assert collector.spans == []
    assert s.engine.headers[0]["traceparent"].endswith("-00")
