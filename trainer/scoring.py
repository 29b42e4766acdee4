"""What a teacher says at every token of given answers, as the log holds it.

Shape suffixes: B answers, T tokens (right-padded), N completion tokens, D width, V vocabulary,
K entries.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from capture.adaptive import Floats, Limits
from capture.scores import Scores, kept
from capture.topk import candidates
from trainer.answering import Answer, Tokens
from trainer.fused import chunks
from trainer.precision import fast_products

LIMITS = Limits(1, 64, 0.995)  # what capture keeps by default
Scorer = Callable[[Sequence[Answer]], list[Scores]]


@torch.inference_mode()
def score_answers(teacher: PreTrainedModel, answers: Sequence[Answer]) -> list[Scores]:
    """Run a teacher over some answers side by side."""
    lengths = [len(answer.completion_ids) for answer in answers]
    token_ids_BT, predicts_N = _laid_out(answers)
    with fast_products(teacher.device):
        hidden_BTD = teacher.model(token_ids_BT.to(teacher.device), use_cache=False)[0]
        hidden_ND = hidden_BTD.flatten(0, 1)[predicts_N.to(teacher.device)]
        parts = list(_candidates(hidden_ND, teacher.lm_head.weight))
    ids_NK, logprobs_NK = (np.concatenate(side) for side in zip(*parts, strict=True))
    ends = np.cumsum(lengths)
    parts_of = (slice(end - length, end) for end, length in zip(ends, lengths, strict=True))
    return [kept(ids_NK[part], logprobs_NK[part], LIMITS) for part in parts_of]


def _laid_out(answers: Sequence[Answer]) -> tuple[Tensor, Tensor]:
    """Token ids side by side, and the flat positions that predict an answer's tokens."""
    rows = [np.concatenate([answer.prompt_ids, answer.completion_ids]) for answer in answers]
    width = max(map(len, rows))
    token_ids_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    predicts = []
    for line, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        token_ids_BT[line, : len(row)] = torch.from_numpy(row.astype(np.int64))
        predicts.append(np.arange(len(answer.prompt_ids) - 1, len(row) - 1) + line * width)
    return token_ids_BT, torch.from_numpy(np.concatenate(predicts))


def _candidates(hidden_ND: Tensor, weight_VD: Tensor) -> Iterator[tuple[Tokens, Floats]]:
    """The likeliest tokens, some positions at a time: whole rows of scores are large."""
    for rows in chunks(hidden_ND, len(weight_VD)):
        found = candidates(hidden_ND[rows] @ weight_VD.T, LIMITS)
        yield found.ids_RK.cpu().numpy(), found.logprobs_RK.cpu().numpy()
