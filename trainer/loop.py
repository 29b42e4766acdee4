"""The training loop: one optimizer step per item of an iterator, nothing drawn or written."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch import Tensor
from torch.optim import AdamW
from transformers import PreTrainedModel

from trainer.dataset import Dataset, Ints
from trainer.gate import Gate
from trainer.learner import Learner
from trainer.losses import Loss
from trainer.packing import endless_batches
from trainer.schedule import learning_rate_factor

BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.01  # of matrices; norm gains are left alone


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides a run's weights, beside the data and the student it starts from.

    Attributes:
        batch_tokens: Padded tokens per step.
        warmup: Steps of linear warm-up.
        sure_share: Of the tokens that the teacher is sure of, how many are trained on.
    """

    loss: Loss
    steps: int
    batch_tokens: int
    learning_rate: float
    warmup: int
    seed: int
    sure_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step.

    Attributes:
        number: Counts from 1.
        loss: Mean nats per completion token, a detached scalar still on the device.
        tokens: Of the batch, padding included.
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
    learner: Learner, dataset: Dataset, rows: Ints, recipe: Recipe, steps_done: int = 0
) -> Iterator[Step]:
    """Train in place, yielding after every step.

    All state is the learner's and the step number: batches and rates are functions of the recipe
    and that number alone. So a run whose first steps were done elsewhere goes on with the same
    batches, and every process of a group has the same.
    """
    learner.student.train()
    batches = endless_batches(dataset.lengths[rows], recipe.batch_tokens, recipe.seed)
    numbered = zip(range(1, recipe.steps + 1), batches, strict=False)
    for number, positions in islice(numbered, steps_done, None):
        rate = recipe.learning_rate * learning_rate_factor(
            number - 1,
            steps=recipe.steps,
            warmup=recipe.warmup,
        )
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        batch = rows[positions]
        gate = Gate(recipe.sure_share, (recipe.seed, number))
        loss, norm = learner.step(dataset, batch, recipe.loss, gate)
        lengths = dataset.lengths[batch]
        yield Step(number, loss, rate, norm, len(lengths) * int(lengths.max()))
