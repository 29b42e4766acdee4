"""Batches: which examples go together, and the tensors they become.

Shape suffixes: B examples, T tokens (right-padded), N completion tokens of the batch, K entries.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.dataset import Dataset, Ints, Ragged
from trainer.losses import Targets

LENGTH_JITTER = 4.0  # tokens; examples of like length meet other neighbours in every epoch


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples side by side.

    Right padding needs no attention mask under causal attention: nothing before it sees it, and
    no loss is taken on it.

    Attributes:
        token_ids_BT: Prompt, completion, padding; int64.
        is_real_BT: False on padding.
        predicts_N: Flat indices into ``B * T`` of the positions that predict a completion token.
        targets: The teacher's side, in the order of ``predicts_N``.
        weights_N: Of each position's loss, float32.
    """

    token_ids_BT: Tensor
    is_real_BT: Tensor
    predicts_N: Tensor
    targets: Targets
    weights_N: Tensor


def epoch_batches(lengths: Ints, batch_tokens: int, seed: tuple[int, int]) -> list[Ints]:
    """Group all examples once, into batches of like length, in random order.

    Args:
        lengths: Tokens per example.
        batch_tokens: Upper bound of a batch's padded size; a longer example goes alone.
        seed: Of the run and of the epoch.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(lengths + rng.uniform(0, LENGTH_JITTER, len(lengths)))
    batches: list[Ints] = []
    start = longest = 0
    for position, index in enumerate(order):
        longest = max(longest, int(lengths[index]))
        if position > start and longest * (position + 1 - start) > batch_tokens:
            batches.append(order[start:position])
            start, longest = position, int(lengths[index])
    batches.append(order[start:])
    return [batches[i] for i in rng.permutation(len(batches))]


def endless_batches(lengths: Ints, batch_tokens: int, seed: int) -> Iterator[Ints]:
    """Yield batches epoch after epoch; the same arguments give the same sequence."""
    epoch = 0
    while True:
        yield from epoch_batches(lengths, batch_tokens, (seed, epoch))
        epoch += 1


def collate(dataset: Dataset, rows: Ints, device: torch.device) -> Batch:
    """Build the tensors of a batch, without a Python object per token."""
    prompts, completions = dataset.prompt_ids, dataset.completion_ids
    lengths_B = dataset.lengths[rows]
    width = int(lengths_B.max())
    token_ids_BT = np.zeros((len(rows), width), dtype=np.int64)
    predicts = []
    for line, row in enumerate(rows):
        prompt, completion = prompts.row(row), completions.row(row)
        end = len(prompt) + len(completion)
        token_ids_BT[line, :end] = np.concatenate([prompt, completion])
        predicts.append(np.arange(len(prompt) - 1, end - 1) + line * width)
    return Batch(
        torch.from_numpy(token_ids_BT).to(device),
        torch.from_numpy(np.arange(width) < lengths_B[:, None]).to(device),
        torch.from_numpy(np.concatenate(predicts)).to(device),
        _targets(dataset, rows, device),
        torch.ones(int(dataset.completion_ids.lengths[rows].sum()), device=device),
    )


def _targets(dataset: Dataset, rows: Ints, device: torch.device) -> Targets:
    size_N = _gather(dataset.topk_size, rows)
    is_kept_NK = np.arange(size_N.max()) < size_N[:, None]
    ids = _gather(dataset.topk_ids, rows)
    first_N = ids[np.concatenate([[0], np.cumsum(size_N)[:-1]]).astype(np.int64)]
    ids_NK = np.repeat(first_N[:, None], is_kept_NK.shape[1], axis=1).astype(np.int64)
    ids_NK[is_kept_NK] = ids
    logprobs_NK = np.full(is_kept_NK.shape, -np.inf, dtype=np.float32)
    logprobs_NK[is_kept_NK] = _gather(dataset.topk_logprobs, rows)
    return Targets(
        torch.from_numpy(_gather(dataset.completion_ids, rows).astype(np.int64)).to(device),
        torch.from_numpy(ids_NK).to(device),
        torch.from_numpy(logprobs_NK).to(device),
        torch.from_numpy(_gather(dataset.tail_logprob, rows).astype(np.float32)).to(device),
        _draws(dataset, rows, device),
    )


def _draws(dataset: Dataset, rows: Ints, device: torch.device) -> Tensor | None:
    """Ids drawn from the tail, as many columns as the row with most of them has; -1 fills up."""
    found = []
    for row in rows:
        positions = len(dataset.completion_ids.row(row))
        found.append(dataset.tail_draws.row(row).reshape(positions, -1))
    width = max(draws.shape[1] for draws in found)
    if not width:
        return None
    filled = [
        np.pad(draws, ((0, 0), (0, width - draws.shape[1])), constant_values=-1) for draws in found
    ]
    return torch.from_numpy(np.concatenate(filled).astype(np.int64)).to(device)


def _gather(ragged: Ragged, rows: Ints) -> np.ndarray:
    return np.concatenate([ragged.row(row) for row in rows])
