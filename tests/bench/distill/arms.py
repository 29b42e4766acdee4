"""What is compared: the same answers with more or less of the teacher's distribution.

Shape suffixes: N completion tokens, K kept entries, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from capture.adaptive import kept_sizes
from trainer.config import LossName
from trainer.dataset import Dataset, Ints, Ragged
from trainer.entries import keep
from trainer.packing import collate, epoch_batches
from trainer.student import completion_hidden


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to learn from the log.

    Attributes:
        loss: As configured.
        k: Entries it is given: a number, ``adaptive``, ``all``, or ``none``.
        data: Which rows: those with 64 entries, with 16 and draws, or with every token's.
        draws: Ids from the tail that it is given.
    """

    loss: LossName
    k: str
    data: str
    draws: int = 0


ARMS: Mapping[str, Arm] = {
    "bc": Arm("behaviour_cloning", "none", "top64"),
    "renorm_k12": Arm("renormalised_topk", "12", "top64"),
    "bucket_k4": Arm("forward_kl", "4", "top64"),
    "bucket_k8": Arm("forward_kl", "8", "top64"),
    "bucket_k16": Arm("forward_kl", "16", "top64"),
    "bucket_k32": Arm("forward_kl", "32", "top64"),
    "bucket_adaptive": Arm("forward_kl", "adaptive", "top64"),
    "draws4_k16": Arm("forward_kl_draws", "16", "draws16", 4),
    "draws_k16": Arm("forward_kl_draws", "16", "draws16", 16),
    "full": Arm("forward_kl", "all", "full"),
}


def cut_to(dataset: Dataset, k: str) -> Dataset:
    """Keep fewer entries, as the tap would have: what they leave out joins the tail.

    Args:
        dataset: Rows with equally many entries at every position.
        k: As an arm says.
    """
    if k in {"none", "all"}:
        return dataset
    width = int(dataset.topk_size.values[0])
    logprobs_NK = dataset.topk_logprobs.values.reshape(-1, width).astype(np.float32)
    if k == "adaptive":
        size_N = kept_sizes(logprobs_NK, k_min=2, mass=0.995)
    else:
        size_N = np.full(len(logprobs_NK), min(int(k), width))
    return keep(dataset, (np.arange(width) < size_N[:, None]).ravel())


def draw_fewer(dataset: Dataset, number: int) -> Dataset:
    """Keep the first of the ids drawn at each position; each was drawn by itself."""
    positions = len(dataset.completion_ids.values)
    draws_ND = dataset.tail_draws.values.reshape(positions, -1)[:, :number]
    starts = dataset.completion_ids.offsets * draws_ND.shape[1]
    return replace(dataset, tail_draws=Ragged(draws_ND.ravel(), starts))


@torch.inference_mode()
def with_everything(dataset: Dataset, teacher: PreTrainedModel) -> Dataset:
    """Replace what was kept by the whole distribution, computed by the teacher once more."""
    positions, vocabulary = len(dataset.completion_ids.values), teacher.config.vocab_size
    ids_NV = np.empty((positions, vocabulary), dtype=np.int32)
    logprobs_NV = np.empty((positions, vocabulary), dtype=np.float32)
    starts = dataset.completion_ids.offsets
    for rows in epoch_batches(dataset.lengths, 4096, (0, 0)):
        batch = collate(dataset, rows, teacher.device)
        scores = completion_hidden(teacher, batch).float() @ teacher.lm_head.weight.float().T
        top = scores.log_softmax(-1).sort(dim=-1, descending=True)
        places = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])
        ids_NV[places], logprobs_NV[places] = top.indices.numpy(), top.values.numpy()
    return replace(
        dataset,
        topk_size=replace(dataset.topk_size, values=np.full(positions, vocabulary, np.int32)),
        topk_ids=Ragged(ids_NV.ravel(), starts * vocabulary),
        topk_logprobs=Ragged(logprobs_NV.ravel(), starts * vocabulary),
        tail_logprob=replace(
            dataset.tail_logprob, values=np.full(positions, -np.inf, dtype=np.float32)
        ),
    )


def some(dataset: Dataset, rows: Ints) -> Dataset:
    """Only some of the answers."""

    def of(ragged: Ragged) -> Ragged:
        values = np.concatenate([ragged.row(row) for row in rows])
        return Ragged(values, np.concatenate([[0], np.cumsum(ragged.lengths[rows])]))

    return Dataset(
        dataset.model_revision,
        *(of(getattr(dataset, field.name)) for field in fields(Dataset)[1:]),
    )
