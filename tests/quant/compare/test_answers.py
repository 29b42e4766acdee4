import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from capture.engine import Engine, EngineSpec
from capture.errors import EngineError
from quant.compare.answers import NO_ROOM, Answer, ask
from quant.compare.confidence import UNSURE
from quant.compare.forced import forced
from quant.compare.serving import context_of, max_tokens
from tests.support.answered_rows import answer
from tests.support.json_server import Asked, Reply, json_server, refusal
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import Dataset, from_table


def says_the_first_token(asked: Asked) -> Reply:
    """An engine that answers with the first token of its prompt, and gives it all the mass."""
    body = asked.body or {}
    first = body["prompt"][0]
    entry = {"logprob": 0.0, "rank": 1, "decoded_token": "x"}
    choice: dict[str, Any] = {"index": 0, "text": f"<{first}>", "finish_reason": "stop"}
    choice["token_ids"] = [first, 1]
    choice["prompt_logprobs"] = [None, *({str(token): entry} for token in body["prompt"][1:])]
    return Reply({"id": "c", "model": body["model"], "choices": [choice]})


def engine_at(url: str, folder: Path) -> Engine:
    log_path = folder / "engine.log"
    log_path.write_text("out of memory\n")
    return Engine(EngineSpec(folder, "student", log_path), urlsplit(url).port or 0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    model = make_tiny_model(tmp_path_factory.mktemp("answers") / "model")
    return from_table(answer(model, 12, tokens=4), model)


def test_answers_come_in_the_order_of_their_prompts(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []
    steps: list[None] = []

    def respond(asked: Asked) -> Reply:
        bodies.append(asked.body or {})
        return says_the_first_token(asked)

    prompts = [[number, 5, 6] for number in range(20)]
    with json_server(respond) as url:
        found = ask(engine_at(url, tmp_path), prompts, 9, 10, lambda: steps.append(None))

    assert found == [Answer(f"<{number}>", (number, 1), "stop") for number in range(20)]
    assert len(steps) == 20
    assert {body["max_tokens"] for body in bodies} == {7}  # what the context leaves
    assert {(body["temperature"], body["model"]) for body in bodies} == {(0, "student")}


def test_a_prompt_that_fills_the_context_is_not_asked(tmp_path: Path) -> None:
    with json_server(lambda _: refusal(400)) as url:
        found = ask(engine_at(url, tmp_path), [[1] * 10, [1] * 11], 9, 10, lambda: None)

    assert found == [NO_ROOM, NO_ROOM]


def test_an_answer_tells_how_sure_the_model_was_where_that_is_asked(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []

    def respond(asked: Asked) -> Reply:
        body = asked.body or {}
        bodies.append(body)
        choice = {"index": 0, "text": "x", "finish_reason": "stop", "token_ids": [3, 1]}
        choice["logprobs"] = {"token_logprobs": [-0.5, 0.0]}
        return Reply({"id": "c", "model": body["model"], "choices": [choice]})

    with json_server(respond) as url:
        engine = engine_at(url, tmp_path)
        asked = (engine, [[5, 6]], 9, 10, lambda: None)
        (sure,) = ask(*asked, is_confidence_asked=True)
        (not_asked,) = ask(*asked)

    assert sure.confidence.mean_logprob == -0.25
    assert not_asked.confidence == UNSURE
    assert bodies[0]["logprobs"] == 0
    assert "logprobs" not in bodies[1]


def test_an_engine_that_fails_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    with (
        json_server(lambda _: refusal(500)) as url,
        pytest.raises(EngineError, match=r"does not answer as expected(.|\n)*out of memory"),
    ):
        ask(engine_at(url, tmp_path), [[1, 2]], 9, 10, lambda: None)


def test_a_row_without_room_is_not_read(dataset: Dataset, tmp_path: Path) -> None:
    shortest = int(dataset.lengths.min())

    with json_server(says_the_first_token) as url:
        engine = engine_at(url, tmp_path)
        found = forced(engine, dataset, 8, shortest + 1, lambda: None)

    assert np.array_equal(np.isnan(found.kl_nats), dataset.lengths > shortest)
    # An engine that is sure of what was said agrees where that was the teacher's likeliest.
    row = int(dataset.lengths.argmin())
    ends = np.cumsum(dataset.topk_size.row(row).astype(np.int64))
    starts = ends - dataset.topk_size.row(row).astype(np.int64)
    likeliest = dataset.topk_ids.row(row)[starts]
    assert found.agreement[row] == np.mean(likeliest == dataset.completion_ids.row(row))


def test_the_context_is_as_long_as_a_row_and_a_timing_need(
    dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    short = context_of(tmp_path, dataset)
    stretched = {"max_position_embeddings": 64, "rope_scaling": {"factor": 4.0}}
    (tmp_path / "config.json").write_text(json.dumps(stretched))
    assert context_of(tmp_path, dataset) == 192 + 48
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 4096}')

    assert max_tokens(dataset) == 4 + 16
    assert short == 64
    assert context_of(tmp_path, dataset) == 192 + 48
