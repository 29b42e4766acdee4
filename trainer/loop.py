"""The training loop: one optimizer step per item of an iterator, nothing drawn or written."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from trainer.dataset import Dataset, Ints
from trainer.fused import fused_loss
from trainer.losses import Loss
from trainer.packing import collate, endless_batches
from trainer.precision import fast_products
from trainer.schedule import learning_rate_factor
from trainer.student import completion_hidden

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01  # of matrices; norm gains are left alone
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides a run's weights, beside the data and the student it starts from.

    Attributes:
        batch_tokens: Padded tokens per step.
        warmup: Steps of linear warm-up.
    """

    loss: Loss
    steps: int
    batch_tokens: int
    learning_rate: float
    warmup: int
    seed: int


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step.

    Attributes:
        number: Counts from 1.
        loss: Mean nats per completion token, a detached scalar still on the device.
        tokens: Tokens run, padding included.
    """

    number: int
    loss: Tensor
    learning_rate: float
    grad_norm: Tensor
    tokens: int


def make_optimizer(student: PreTrainedModel) -> AdamW:
    """Return AdamW that decays matrices only; the loop sets its learning rate."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, betas=BETAS, foreach=True)


def train(
    student: PreTrainedModel,
    optimizer: AdamW,
    dataset: Dataset,
    rows: Ints,
    recipe: Recipe,
    steps_done: int = 0,
) -> Iterator[Step]:
    """Train in place, yielding after every step.

    All state is the student, the optimizer and the step number: batches and rates are functions
    of the recipe and that number alone. So a run whose first steps were done elsewhere goes on
    with the same batches.
    """
    student.train()
    batches = endless_batches(dataset.lengths[rows], recipe.batch_tokens, recipe.seed)
    numbered = zip(range(1, recipe.steps + 1), batches, strict=False)
    for number, positions in islice(numbered, steps_done, None):
        rate = recipe.learning_rate * learning_rate_factor(
            number - 1,
            steps=recipe.steps,
            warmup=recipe.warmup,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = collate(dataset, rows[positions], student.device)
        with fast_products(student.device):
            hidden_ND = completion_hidden(student, batch)
            share_N = hidden_ND.new_full((len(hidden_ND),), 1 / len(hidden_ND))
            projection = student.lm_head.weight
            loss = fused_loss(hidden_ND, projection, batch.targets, recipe.loss, share_N)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        yield Step(number, loss.detach(), rate, norm, batch.token_ids_BT.numel())
