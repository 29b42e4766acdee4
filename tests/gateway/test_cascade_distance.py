"""A route whose teacher answers prompts that are unlike what its student was trained on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from capture.account import read_counts
from capture.config import CaptureConfig
from capture.errors import ConfigError
from capture.familiarity import Familiarity
from capture.rows import encode_logits
from capture.writer import Spool
from gateway.cascade import CascadeConfig
from gateway.config import GatewayConfig
from gateway.reload import Settings
from gateway.routing import RouteTable
from gateway.wiring import Wire
from tests.gateway.test_cascade import CHAT, SURE, Both, cascade
from tests.gateway.test_relay import LIMITS, chat

NEAR, FAR = "where is my order", "Wherefore art thou"
TRAINING = Familiarity.of([NEAR] * 9)


@asynccontextmanager
async def by_distance(folder: Path) -> AsyncIterator[Both]:
    async with cascade(folder, SURE) as both:
        routes = {
            "support": {
                "url": both.stand.engine_url,
                "cascade": {"route": "large", "distance": 1.0, "training": "training.npz"},
            },
            "large": {"url": "http://127.0.0.1:1"},
        }
        both.stand.serving.config = GatewayConfig.model_validate({"routes": routes})
        both.stand.serving.trainings = {"support": TRAINING}
        yield both


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_unlike_all_that_the_student_knows_is_the_teachers(
    tmp_path: Path, stream: bool
) -> None:
    async with by_distance(tmp_path) as both:
        far = await both.client.post(CHAT, json=chat(FAR, stream=stream))
        near = await both.client.post(CHAT, json=chat(NEAR, stream=stream))
        rows = await both.stand.rows()

    assert far.headers["x-retort-deployment"] == "large"
    assert near.headers["x-retort-deployment"] == "teacher"
    assert [each["messages"] for each in both.student.bodies] == [chat(NEAR)["messages"]]
    assert both.teacher.bodies[0]["model"] == "large"
    assert both.teacher.bodies[0]["vllm_xargs"] == {"retort": far.headers["x-retort-exchange-id"]}
    assert both.outcomes == ["teacher", "student"]
    assert [(row["role"], row["route"], row["deployment"], row["status"]) for row in rows] == [
        ("incumbent", "support", "large", "completed"),
        ("incumbent", "support", "teacher", "completed"),
    ]


async def test_a_far_prompt_stays_with_the_student_if_nobody_else_is_there(tmp_path: Path) -> None:
    async with by_distance(tmp_path) as both:
        table = both.stand.serving.table.routes
        both.stand.serving.table = RouteTable({"support": table["support"]})
        answer = await both.client.post(CHAT, json=chat(FAR))

    assert answer.headers["x-retort-deployment"] == "teacher"  # the stand's name for its engine
    assert both.outcomes == ["unavailable"]


async def test_a_teacher_is_not_recorded_as_its_students_route_says(tmp_path: Path) -> None:
    async with by_distance(tmp_path) as both:
        serving = both.stand.serving
        spool = Spool(tmp_path / "wire", "logits", encode_logits, limits=LIMITS)
        serving.wire = Wire(spool, CaptureConfig(), {})
        serving.config.routes["support"] = serving.config.routes["support"].model_copy(
            update={"capture": "wire"}
        )
        await both.client.post(CHAT, json=chat(FAR))
        await asyncio.to_thread(spool.close)

    assert "logprobs" not in both.teacher.bodies[0]
    counts = read_counts(tmp_path / "wire").values()
    assert sum(each.started for each in counts) == 0


def test_what_has_no_words_is_not_weighed() -> None:
    config = CascadeConfig(route="large", distance=1.0, training=Path("training.npz"))

    assert config.is_far(TRAINING, CHAT, chat(FAR)) is True
    assert config.is_far(TRAINING, CHAT, chat(NEAR)) is False
    assert config.is_far(TRAINING, "/v1/completions", {"prompt": [1, 2, 3]}) is None
    assert config.is_far(TRAINING, "/v1/embeddings", {"input": FAR}) is None


def test_a_training_file_lies_beside_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "retort.toml"
    cascade = 'cascade = {route = "large", distance = 1.0, training = "training.npz"}'
    path.write_text(
        f'[gateway.routes.support]\nurl = "http://127.0.0.1:1"\n{cascade}\n'
        '[gateway.routes.large]\nurl = "http://127.0.0.1:2"\n'
    )
    settings = Settings.read(path)
    with pytest.raises(ConfigError, match=r"training.npz"):
        settings.read_trainings()

    TRAINING.save(tmp_path / "training.npz")

    assert settings.read_trainings()["support"].distance(NEAR) == TRAINING.distance(NEAR)
