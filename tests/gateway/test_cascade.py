"""A route whose teacher answers what its student is unsure of."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from capture.account import read_counts
from gateway.config import GatewayConfig
from gateway.metrics import Metrics
from gateway.pool import Pool
from gateway.routing import Deployment, Route, RouteTable
from tests.gateway.test_relay import Stand, chat, stand
from tests.support.fake_engine import FakeEngine
from tests.support.serving import served

SURE, UNSURE = -2.0, -1.0  # thresholds: the fake student is sure by -1.5 nats
CHAT = "/v1/chat/completions"
COMPLETION = {"model": "support", "prompt": "hi"}


@dataclass
class Both:
    """A student before its teacher."""

    stand: Stand
    teacher: FakeEngine
    outcomes: list[str]

    @property
    def client(self) -> httpx.AsyncClient:
        return self.stand.client

    @property
    def student(self) -> FakeEngine:
        return self.stand.engine


@asynccontextmanager
async def cascade(
    folder: Path, threshold: float, stream_threshold: float | None = None
) -> AsyncIterator[Both]:
    teacher = FakeEngine(answer="the teacher's")
    async with stand(folder) as s, served(teacher.app) as teacher_url:
        routes = {
            "support": {
                "url": s.engine_url,
                "cascade": {
                    "route": "large",
                    "threshold": threshold,
                    "stream_threshold": stream_threshold,
                },
            },
            "large": {"url": teacher_url},
        }
        s.serving.config = GatewayConfig.model_validate({"routes": routes})
        large = Deployment("large", Pool((teacher_url,)), "large", "rev2", capture=True)
        s.serving.table = s.serving.table.with_route("large", Route(large))
        outcomes: list[str] = []
        s.serving.on_cascade = lambda _, _signal, outcome: outcomes.append(outcome)
        yield Both(s, teacher, outcomes)


def text_of(answer: httpx.Response) -> str:
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


async def test_a_sure_student_answers_as_if_nobody_had_asked_how_sure_it_is(tmp_path: Path) -> None:
    async with cascade(tmp_path, SURE) as both:
        answer = await both.client.post(CHAT, json=chat("hi"))
        async with httpx.AsyncClient(base_url=both.stand.engine_url) as direct:
            straight = await direct.post(CHAT, json=chat("hi"))
        (row,) = await both.stand.rows()

    assert answer.json() == straight.json()
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert set(answer.headers) - set(straight.headers) == {
        "x-retort-exchange-id",
        "x-retort-deployment",
    }
    assert answer.headers["x-retort-deployment"] == "teacher"  # the stand's name for its engine
    assert (both.student.bodies[0]["logprobs"], both.student.bodies[0]["top_logprobs"]) == (True, 0)
    assert (both.outcomes, both.teacher.bodies) == (["student"], [])
    assert (row["role"], row["status"]) == ("incumbent", "completed")


async def test_the_teacher_answers_what_its_student_is_unsure_of(tmp_path: Path) -> None:
    async with cascade(tmp_path, UNSURE) as both:
        answer = await both.client.post(CHAT, json=chat("hi", seed=7))
        rows = {row["role"]: row for row in await both.stand.rows()}
        ended = [both.stand.ended.get_nowait() for _ in range(2)]

    assert text_of(answer) == "the teacher's"
    assert answer.headers["x-retort-deployment"] == "large"
    sent = both.teacher.bodies[0]
    assert "logprobs" not in sent
    assert (sent["seed"], sent["model"]) == (7, "large")  # as its engine is called
    assert both.outcomes == ["teacher"]
    shadow, own = rows["shadow"], rows["incumbent"]
    assert own["exchange_id"] == answer.headers["x-retort-exchange-id"] == shadow["pair_id"]
    assert (shadow["deployment"], own["deployment"]) == ("teacher", "large")
    assert (shadow["route"], own["route"]) == ("support", "support")
    assert own["started_at"] == shadow["started_at"]
    assert shadow["response_text"] == ['{"intent": "order"}']
    tag = both.student.bodies[0]["vllm_xargs"]
    assert tag == {"retort": shadow["exchange_id"]}
    assert [each.role for each in ended] == ["shadow", "incumbent"]


async def test_completions_are_weighed_too(tmp_path: Path) -> None:
    async with cascade(tmp_path, UNSURE) as both:
        unsure = await both.client.post("/v1/completions", json=COMPLETION)
    async with cascade(tmp_path / "other", SURE) as sure_one:
        sure = await sure_one.client.post("/v1/completions", json=COMPLETION)

    assert unsure.json()["choices"][0]["text"] == "the teacher's"
    assert sure.json()["choices"][0]["logprobs"] is None
    assert sure_one.student.bodies[0]["logprobs"] == 0


async def test_a_client_that_asks_for_logprobs_gets_them(tmp_path: Path) -> None:
    own = chat("hi", logprobs=True, top_logprobs=1)
    async with cascade(tmp_path, SURE) as both:
        answer = await both.client.post(CHAT, json=own)
        async with httpx.AsyncClient(base_url=both.stand.engine_url) as direct:
            straight = await direct.post(CHAT, json=own)

    assert answer.content == straight.content
    assert both.outcomes == ["student"]


async def test_without_a_threshold_a_stream_stays_with_the_student(tmp_path: Path) -> None:
    async with cascade(tmp_path, UNSURE) as both:
        answer = await both.client.post(CHAT, json=chat("hi", stream=True))

    assert answer.headers["x-retort-deployment"] == "teacher"
    assert "logprobs" not in both.student.bodies[0]
    assert (both.outcomes, both.teacher.bodies) == ([], [])


@pytest.mark.parametrize(("word", "status"), [("fail", 500), ("refuse", 400), ("vanish", 502)])
async def test_a_students_errors_are_its_own(tmp_path: Path, word: str, status: int) -> None:
    async with cascade(tmp_path, UNSURE) as both:
        answer = await both.client.post(CHAT, json=chat(word))
        (row,) = await both.stand.rows()

    assert answer.status_code == status
    assert "error" in answer.json()
    assert row["role"] == "incumbent"
    assert (both.outcomes, both.teacher.bodies) == ([], [])


async def test_an_answer_that_does_not_tell_is_the_teachers(tmp_path: Path) -> None:
    async with cascade(tmp_path, SURE) as both:
        answer = await both.client.post(CHAT, json=chat("echo hi"))

    assert text_of(answer) == "hi"  # the teacher's echo
    assert both.outcomes == ["teacher"]


async def test_without_a_teacher_the_students_answer_stands(tmp_path: Path) -> None:
    async with cascade(tmp_path, UNSURE) as both:
        table = both.stand.serving.table.routes
        both.stand.serving.table = RouteTable({"support": table["support"]})
        answer = await both.client.post(CHAT, json=chat("hi"))
        strange = await both.client.post(CHAT, json=chat("echo hi"))
        rows = await both.stand.rows()

    assert text_of(answer) == '{"intent": "order"}'
    assert answer.json()["choices"][0]["logprobs"] is None
    assert text_of(strange) == "hi"
    assert both.outcomes == ["unavailable"] * 2
    assert [row["role"] for row in rows] == ["incumbent"] * 2


async def test_a_client_that_leaves_stops_the_teachers_work(tmp_path: Path) -> None:
    async with cascade(tmp_path, UNSURE) as both:
        both.teacher.spells.add("hang")
        asking = asyncio.create_task(both.client.post(CHAT, json=chat("hi")))
        await asyncio.wait_for(both.teacher.hanging.wait(), 5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(both.teacher.cancelled.wait(), 5)
        ended = [await asyncio.wait_for(both.stand.ended.get(), 5) for _ in range(2)]
        rows = await both.stand.rows()
        (counts,) = read_counts(both.stand.spool_dir).values()

    assert [(each.role, each.status) for each in ended] == [
        ("shadow", "completed"),
        ("incumbent", "aborted"),
    ]
    assert len(rows) == counts.started == counts.written == 2


async def test_a_teacher_that_fails_is_the_clients_error(tmp_path: Path) -> None:
    async with cascade(tmp_path, UNSURE) as both:
        both.teacher.spells.add("fail")
        answer = await both.client.post(CHAT, json=chat("hi"))

    assert answer.status_code == 500


async def test_the_share_of_escalations_can_be_read_off_the_metrics(tmp_path: Path) -> None:
    metrics = Metrics.create(None)
    async with cascade(tmp_path, UNSURE) as both:
        both.stand.serving.on_cascade = metrics.count_cascade
        await both.client.post(CHAT, json=chat("hi"))

    value = metrics.registry.get_sample_value(
        "retort_cascade_total", {"route": "support", "signal": "mean_logprob", "outcome": "teacher"}
    )
    assert value == 1
