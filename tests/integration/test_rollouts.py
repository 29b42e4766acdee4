"""A real vLLM that answers as a student and scores as a teacher, beside transformers."""

import numpy as np
import pytest
import torch

from tests.integration.conftest import Tapped
from trainer.answering import Sampling, sample_answers
from trainer.endpoint import only_model, open_endpoint
from trainer.remote import Engine
from trainer.scoring import score_answers
from trainer.student import open_teacher

pytestmark = [
    *(pytest.mark.engine, pytest.mark.timeout(600)),
    pytest.mark.usefixtures("float32_products"),  # as the engine's
]
PROMPTS = [np.array(ids, np.int32) for ids in ([9, 50, 7], [200] * 70, [31, 8, 120, 77, 14, 66])]


@pytest.fixture
def engine(tapped: Tapped) -> Engine:
    client = open_endpoint(tapped.url)
    return Engine(client, tapped.url, only_model(client, tapped.url))


def test_it_answers_as_transformers_does(engine: Engine, tapped: Tapped) -> None:
    model = open_teacher(tapped.model, torch.device("cpu"))
    sampling = Sampling(0.0, 20)
    theirs = engine.answers(sampling, PROMPTS)
    ours = sample_answers(model, [1], sampling, PROMPTS)

    for one, other in zip(theirs, ours, strict=True):
        assert one.completion_ids.tolist() == other.completion_ids.tolist()
        assert one.finish_reason == other.finish_reason


def test_it_scores_sampled_answers_as_transformers_does(engine: Engine, tapped: Tapped) -> None:
    model = open_teacher(tapped.model, torch.device("cpu"))
    answers = engine.answers(Sampling(1.0, 20), PROMPTS)
    for theirs, ours in zip(engine.scores(answers), score_answers(model, answers), strict=True):
        starts = np.cumsum(ours.topk_size, dtype=np.int64) - ours.topk_size
        assert (theirs.topk_size == np.minimum(ours.topk_size, 20)).all()
        for position, start in enumerate(starts):
            size = theirs.topk_size[position]
            first = int(theirs.topk_size[:position].sum(dtype=np.int64))
            found = theirs.topk_logprobs[first : first + size]
            expected = ours.topk_logprobs[start : start + size]
            assert np.allclose(found, expected, atol=1e-3)
            left = 1 - np.exp(expected.astype(np.float64)).sum()
            assert np.exp(theirs.tail_logprob[position]) == pytest.approx(left, abs=1e-3)
        assert (theirs.likeliest == ours.likeliest).all()
