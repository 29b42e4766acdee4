"""A teacher's distributions at given tokens: here, by a server, and by the definition."""

from pathlib import Path

import numpy as np
import pytest
import torch

from capture.adaptive import Limits
from capture.errors import ConfigError
from capture.scores import Scores, kept
from tests.support.model_server import ModelServer, model_server
from tests.support.tiny_model import make_tiny_model
from trainer import endpoint, fused
from trainer.answering import Answer, Sampling
from trainer.endpoint import only_model, open_endpoint
from trainer.errors import EndpointError
from trainer.remote import Engine
from trainer.scoring import score_answers
from trainer.student import open_teacher

pytestmark = pytest.mark.usefixtures("float32_products")


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


ANSWERS = [
    Answer(ids(9, 50, 7), ids(8, 200, 31, 1), "stop"),
    Answer(ids(77), ids(66, 5), "length"),
    Answer(ids(5, 6, 7, 8, 9, 10), ids(11), "length"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("scoring") / "teacher")


def reference(folder: Path, answer: Answer) -> np.ndarray:
    """Log-probabilities of the whole vocabulary at each of the answer's tokens."""
    model = open_teacher(folder, torch.device("cpu"))
    row = np.concatenate([answer.prompt_ids, answer.completion_ids]).astype(np.int64)
    with torch.inference_mode():
        logprobs = model(torch.from_numpy(row)[None]).logits[0].double().log_softmax(-1).numpy()
    found: np.ndarray = logprobs[len(answer.prompt_ids) - 1 : -1]
    return found


def check(scores: Scores, logprobs_NV: np.ndarray, k_max: int) -> None:
    """Entries, likeliest first, as many as capture keeps, and the mass outside them."""
    start = 0
    for position, size in enumerate(scores.topk_size):
        row = logprobs_NV[position]
        order = np.argsort(-row, kind="stable")
        reached = int((np.exp(row[order]).cumsum() < 0.995).sum()) + 1
        assert size == min(reached, k_max)
        assert scores.topk_ids[start : start + size].tolist() == order[:size].tolist()
        found = scores.topk_logprobs[start : start + size]
        assert np.allclose(found, row[order[:size]], atol=1e-4)
        tail = np.exp(row[order[size:]]).sum()
        assert np.exp(scores.tail_logprob[position]) == pytest.approx(tail, abs=1e-5)
        start += size
    assert start == len(scores.topk_ids)


@pytest.mark.parametrize("chunk_bytes", [4 * 261, fused.CHUNK_BYTES])
def test_a_teacher_scores_every_token_of_an_answer(
    folder: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "CHUNK_BYTES", chunk_bytes)
    teacher = open_teacher(folder, torch.device("cpu"))

    for answer, scores in zip(ANSWERS, score_answers(teacher, ANSWERS), strict=True):
        check(scores, reference(folder, answer), 64)


def test_a_server_scores_as_its_model_does(folder: Path) -> None:
    with model_server(ModelServer(folder)) as url:
        engine = Engine(open_endpoint(url), url, "model")
        found = engine.scores(ANSWERS)

    for answer, scores in zip(ANSWERS, found, strict=True):
        check(scores, reference(folder, answer), 20)


def test_a_server_answers_with_token_ids(folder: Path) -> None:
    prompts = [answer.prompt_ids for answer in ANSWERS]
    server = ModelServer(folder)
    with model_server(server) as url:
        engine = Engine(open_endpoint(f"{url}/v1"), url, "model")
        found = engine.answers(Sampling(0.5, 6), prompts)

    for answer, prompt in zip(found, prompts, strict=True):
        assert answer.prompt_ids is prompt
        last = reference(folder, answer).argmax(axis=1)
        assert answer.completion_ids.tolist() == last.tolist()
    (body,) = server.bodies
    assert {name: body[name] for name in ("temperature", "top_k", "top_p", "max_tokens")} == {
        "temperature": 0.5,
        "top_k": 0,
        "top_p": 1.0,
        "max_tokens": 6,
    }


def test_a_short_row_keeps_what_it_has() -> None:
    logprobs = np.log(np.array([[0.6, 0.4, 0.0], [0.5, 0.3, 0.2]], np.float32) + 1e-30)
    logprobs[0, 2] = -np.inf
    found = kept(np.array([[4, 2, 0], [7, 8, 9]], np.int32), logprobs, Limits(1, 3, 1.0))

    assert found.topk_size.tolist() == [2, 3]
    assert found.topk_ids.tolist() == [4, 2, 7, 8, 9]
    assert found.likeliest.tolist() == [4, 7]


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, ConfigError, "refuses the key.*OPENAI_API_KEY"),
        (404, ConfigError, "does not know that model or path: no"),
        (400, EndpointError, "answers 400: no"),
        (429, EndpointError, "limits the rate"),
        (503, EndpointError, "answers 503: no"),
    ],
)
def test_what_a_server_refuses_is_told(
    folder: Path,
    status: int,
    error: type[Exception],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)
    with (
        model_server(ModelServer(folder, status=status)) as url,
        pytest.raises(error, match=words),
    ):
        Engine(open_endpoint(url), url, "model").scores(ANSWERS)


def test_a_server_that_is_no_vllm_is_told(folder: Path) -> None:
    with model_server(ModelServer(folder, is_plain=True)) as url:
        engine = Engine(open_endpoint(url), url, "model")
        with pytest.raises(EndpointError, match="no prompt_logprobs"):
            engine.scores(ANSWERS)
        with pytest.raises(EndpointError, match="no token_ids"):
            engine.answers(Sampling(1.0, 2), [ANSWERS[0].prompt_ids])


def test_no_server_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)
    url = "http://127.0.0.1:9"
    with pytest.raises(EndpointError, match=r"127.0.0.1:9: no answer.*try again"):
        only_model(open_endpoint(url), url)


def test_a_server_of_several_models_is_no_teacher(folder: Path) -> None:
    with (
        model_server(ModelServer(folder, names=["a", "b"])) as url,
        pytest.raises(ConfigError, match=r"serves 2 models .a, b., expected one"),
    ):
        only_model(open_endpoint(url), url)
