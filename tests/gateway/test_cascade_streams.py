"""A student's streams, held back until it is known whose answer its client gets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk
from starlette.types import Message

from capture.account import read_counts
from capture.confidence import FIRST_TOKENS
from gateway.cascade import Cascade, CascadeConfig
from gateway.escalation import Held
from gateway.exchange import Exchange, Request
from gateway.gate import Gate
from gateway.keys import ApiKey, KeyRing, digest_of, new_secret, shown
from gateway.metrics import Metrics
from gateway.pool import Pool
from gateway.routing import Deployment, RouteTable
from tests.gateway.test_cascade import CHAT, SURE, UNSURE, Both, cascade
from tests.gateway.test_relay import chat

HOPELESS = -1.5 / FIRST_TOKENS / 2  # a threshold that one token of the fake student's falls below
PEPPER = b"pepper"
LONG = " ".join(map(str, range(40)))


@asynccontextmanager
async def streams(folder: Path, threshold: float) -> AsyncIterator[Both]:
    """Both, the student's answer longer than what is looked at."""
    async with cascade(folder, threshold=-100.0, stream_threshold=threshold) as both:
        both.student.answer = LONG
        yield both


async def read(both: Both, word: str = "hi", **more: object) -> list[ChatCompletionChunk]:
    """What OpenAI's own client makes of a stream."""
    url = f"{both.client.base_url}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(**chat(word, **more), stream=True)  # type: ignore[call-overload]
        return [chunk async for chunk in stream]


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


async def test_a_sure_students_stream_comes_as_if_nobody_had_asked(tmp_path: Path) -> None:
    async with streams(tmp_path, SURE) as both:
        answer = await both.client.post(CHAT, json=chat("hi", stream=True))
        async with httpx.AsyncClient(base_url=both.stand.engine_url) as direct:
            straight = await direct.post(CHAT, json=chat("hi", stream=True))
        (row,) = await both.stand.rows()

    assert answer.content == straight.content
    assert set(answer.headers) - set(straight.headers) == {
        "x-retort-exchange-id",
        "x-retort-deployment",
    }
    assert answer.headers["x-retort-deployment"] == "teacher"  # the stand's name for its engine
    assert both.student.bodies[0]["logprobs"] is True
    assert (both.outcomes, both.teacher.bodies) == (["student"], [])
    assert (row["role"], row["status"], row["response_text"]) == ("incumbent", "completed", [LONG])


async def test_the_teachers_stream_comes_instead_of_one_that_is_unsure(tmp_path: Path) -> None:
    async with streams(tmp_path, UNSURE) as both:
        chunks = await read(both)
        rows = {row["role"]: row for row in await both.stand.rows()}
        ended = [both.stand.ended.get_nowait() for _ in range(2)]
        (counts,) = read_counts(both.stand.spool_dir).values()

    assert text_of(chunks) == "the teacher's"  # and no byte of the student's
    assert "logprobs" not in both.teacher.bodies[0]
    assert both.outcomes == ["teacher"]
    shadow, own = rows["shadow"], rows["incumbent"]
    assert (shadow["deployment"], own["deployment"]) == ("teacher", "large")
    assert shadow["pair_id"] == own["exchange_id"]
    assert (shadow["status"], own["status"]) == ("aborted", "completed")
    assert own["started_at"] == shadow["started_at"]
    # Nobody waited for the rest: what was held is what was weighed.
    assert 1 < len(str(shadow["response_text"]).split()) <= FIRST_TOKENS
    assert [each.role for each in ended] == ["shadow", "incumbent"]
    assert counts.started == counts.written == 2


async def test_a_client_that_asks_for_logprobs_gets_them_in_a_stream(tmp_path: Path) -> None:
    own = chat("hi", stream=True, logprobs=True, top_logprobs=1)
    async with streams(tmp_path, SURE) as both:
        answer = await both.client.post(CHAT, json=own)
        async with httpx.AsyncClient(base_url=both.stand.engine_url) as direct:
            straight = await direct.post(CHAT, json=own)

    assert answer.content == straight.content
    assert both.outcomes == ["student"]


async def test_a_student_that_nobody_listens_to_any_more_stops(tmp_path: Path) -> None:
    async with streams(tmp_path, SURE) as both:
        both.student.spells.add("flood")  # text without end, and without log-probabilities
        chunks = await read(both)
        flooded = [both.student.flooded]
        both.student.spells.clear()
        await read(both)
        flooded.append(both.student.flooded)

    assert both.outcomes == ["teacher", "student"]
    assert text_of(chunks) == "the teacher's"
    assert flooded[1] - flooded[0] < 1_000_000  # a socket's buffer at most


async def test_a_client_that_leaves_while_all_is_held_gets_nothing_counted(tmp_path: Path) -> None:
    async with streams(tmp_path, SURE) as both:
        asking = asyncio.create_task(both.client.post(CHAT, json=chat("pause", stream=True)))
        await asyncio.wait_for(both.student.hanging.wait(), 5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        ended = await asyncio.wait_for(both.stand.ended.get(), 5)
        (row,) = await both.stand.rows()

    assert (ended.role, ended.status) == ("incumbent", "aborted")
    assert (row["role"], row["status"]) == ("incumbent", "aborted")
    assert (both.outcomes, both.teacher.bodies) == ([], [])


async def test_a_client_that_leaves_stops_the_teachers_stream(tmp_path: Path) -> None:
    async with streams(tmp_path, HOPELESS) as both:
        both.teacher.spells.add("hang")
        asking = asyncio.create_task(both.client.post(CHAT, json=chat("pause", stream=True)))
        await asyncio.wait_for(both.teacher.hanging.wait(), 5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(both.teacher.cancelled.wait(), 5)
        ended = [await asyncio.wait_for(both.stand.ended.get(), 5) for _ in range(2)]

    assert [(each.role, each.status) for each in ended] == [
        ("shadow", "aborted"),
        ("incumbent", "aborted"),
    ]


@pytest.mark.parametrize(
    ("word", "status"), [("fail", 500), ("refuse", 400), ("vanish", 502), ("break", 502)]
)
async def test_a_students_errors_before_the_first_byte_are_its_own(
    tmp_path: Path, word: str, status: int
) -> None:
    async with streams(tmp_path, SURE) as both:
        answer = await both.client.post(CHAT, json=chat(word, stream=True))
        (row,) = await both.stand.rows()

    assert answer.status_code == status
    assert "error" in answer.json()
    assert (row["role"], both.outcomes, both.teacher.bodies) == ("incumbent", [], [])


async def test_a_student_that_breaks_off_later_gets_no_teachers_end(tmp_path: Path) -> None:
    async with streams(tmp_path, SURE) as both:
        both.student.answer = "0"
        answer = await both.client.post(CHAT, json=chat("break", stream=True))

    # Its one piece said that it was the last, so it was released; then the engine died.
    events = answer.text.strip().split("\n\n")
    assert len(events) == 2
    assert '"content":"0"' in events[0]
    assert "broke off" in events[1]
    assert (both.outcomes, both.teacher.bodies) == (["student"], [])


async def test_without_a_teacher_the_students_stream_is_released(tmp_path: Path) -> None:
    async with streams(tmp_path, HOPELESS) as both:
        table = both.stand.serving.table.routes
        both.stand.serving.table = RouteTable({"support": table["support"]})
        chunks = await read(both)
        (row,) = await both.stand.rows()

    assert text_of(chunks) == LONG
    assert both.outcomes == ["unavailable"]
    assert (row["role"], row["status"]) == ("incumbent", "completed")


async def test_a_teacher_that_fails_is_the_streams_error(tmp_path: Path) -> None:
    async with streams(tmp_path, HOPELESS) as both:
        both.teacher.spells.add("fail")
        answer = await both.client.post(CHAT, json=chat("hi", stream=True))

    assert answer.status_code == 500
    assert "error" in answer.json()


async def test_a_key_pays_for_the_stream_that_its_client_gets(tmp_path: Path) -> None:
    key_id, secret = new_secret()
    key = ApiKey(key_id, "acme", digest_of(PEPPER, secret.encode()), datetime.now(UTC))
    async with streams(tmp_path, HOPELESS) as both:
        both.stand.serving.gate = gate = Gate(ring=KeyRing(PEPPER, [key]))
        both.teacher.answer = "a b c d e"
        headers = {"authorization": f"Bearer {shown(key_id, secret)}"}
        body = chat("hi", stream=True)
        request = both.client.build_request("POST", CHAT, json=body, headers=headers)
        answer = await both.client.send(request)

    prompt = len(request.content) // 4
    assert answer.headers["x-retort-deployment"] == "large"
    assert (gate.requests[key_id], gate.tokens[key_id]) == (1, prompt + 5)


async def test_the_wait_for_a_streams_first_byte_is_the_clients(tmp_path: Path) -> None:
    metrics = Metrics.create(None)
    async with streams(tmp_path, SURE) as both:
        both.stand.serving.on_cascade = metrics.count_cascade
        both.student.pace_seconds = 0.01
        await read(both)
        ended = both.stand.ended.get_nowait()

    assert ended.ttft_seconds is not None
    assert ended.inter_token_seconds is not None
    assert ended.ttft_seconds > (FIRST_TOKENS - 1) * 0.01
    assert ended.ttft_seconds < ended.duration_seconds
    labels = {"route": "support", "signal": "first_tokens", "outcome": "student"}
    assert metrics.registry.get_sample_value("retort_cascade_total", labels) == 1


async def test_a_row_is_safe_before_the_end_of_a_stream_that_was_held_whole() -> None:
    happened: list[str] = []

    async def send(message: Message) -> None:
        happened.append(message["type"])

    async def record(_: Exchange) -> None:
        happened.append("recorded")

    planned = Cascade.of(
        CascadeConfig(route="large", stream_threshold=-1), CHAT, chat("hi", stream=True)
    )
    assert planned is not None
    request = Request(CHAT, "support", b"{}", {}, stream=True, conversation="")
    deployment = Deployment("small", Pool(("http://x",)), "small", None, capture=False)
    exchange = Exchange("1", request, deployment, "incumbent", cascade=planned)
    held = Held(exchange, planned, send, record, lambda _: None)

    await held.take({"type": "http.response.start", "status": 200, "headers": []})
    await held.keep(exchange)  # as before a piece that holds the end
    assert happened == []
    await held.take({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    assert happened == ["recorded", "http.response.start", "http.response.body"]
