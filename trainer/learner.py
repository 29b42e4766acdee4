"""A student, its optimizer, and one step of both, alone or beside other processes."""

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from trainer.dataset import Dataset, Ints
from trainer.fused import fused_loss
from trainer.gate import Gate
from trainer.losses import Loss
from trainer.packing import Batch, collate
from trainer.precision import fast_products
from trainer.progress import Done, Progress
from trainer.scale import ALONE, Group
from trainer.student import completion_hidden

MAX_GRAD_NORM = 1.0


class Objective(nn.Module):
    """The loss of a batch as a module, which is what engines for several processes wrap."""

    def __init__(self, student: PreTrainedModel) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: Batch, loss: Loss, weight: float) -> Tensor:
        """Return the completion tokens' losses in nats, summed by their weights, times another."""
        with fast_products(batch.token_ids_BT.device):
            hidden_ND = completion_hidden(self.student, batch)
            projection = self.student.lm_head.weight
            weights_N = weight * batch.weights_N
            return fused_loss(hidden_ND, projection, batch.targets, loss, weights_N)


class Learner:
    """A student and its optimizer; in a group every process holds both, the same.

    Attributes:
        student: As it is after the last step.
        optimizer: Of what is trained; the loop sets its learning rate.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        optimizer: AdamW,
        group: Group = ALONE,
        engine: nn.Module | None = None,
    ) -> None:
        """Put together what belongs together.

        Args:
            student: Trained in place.
            optimizer: Of its weights.
            group: Of the processes that take each step together.
            engine: The student's ``Objective``, wrapped so that gradients are averaged over them;
                needless for a process alone.
        """
        self.student = student
        self.optimizer = optimizer
        self._group = group
        self._objective = Objective(student) if engine is None else engine

    def step(self, dataset: Dataset, rows: Ints, loss: Loss, gate: Gate) -> tuple[Tensor, Tensor]:
        """Take a step on a batch, of which this process runs its part.

        Every token weighs the same in whichever process. Each takes its part of the whole batch's
        mean as many times as there are processes, because engines average gradients.

        Returns:
            The loss in nats per completion token of the whole batch, and its gradient's norm.
        """
        positions, share = self._group.part(dataset.lengths[rows])
        own = rows[positions]
        batch = gate.thinned(collate(dataset, own, self.student.device), dataset, own)
        tokens = int(dataset.completion_ids.lengths[rows].sum())
        value = self._objective(batch, loss, share * self._group.size / tokens)
        torch.autograd.backward(value)
        norm = nn.utils.clip_grad_norm_(self._objective.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self._group.mean(value.detach()), norm

    def gather(self) -> None:
        """Bring ``student`` up to date; every process of the group calls it after the same step."""

    def save(self, progress: Progress | None, done: Done) -> None:
        """Put everything in place that the next step depends on; likewise.

        Args:
            progress: None in every process but the first.
            done: How far the run has come.
        """
        if progress is not None:
            progress.save(self.student, self.optimizer, done)

    def restore(self, progress: Progress | None) -> Done:
        """Go on after what the first process finds saved, else begin at step 0; likewise."""
        done = self._load(progress, self.optimizer)
        with torch.no_grad():
            self._group.spread(list(self.student.parameters()))
            if done.steps:
                self._group.spread(moments(self.optimizer, done.steps))
        return done

    def _load(self, progress: Progress | None, optimizer: AdamW) -> Done:
        """Fill the first process's student and optimizer; tell all how far the run has come."""
        done = Done() if progress is None else progress.restore(self.student, optimizer)
        return self._group.same(done)


def moments(optimizer: AdamW, steps: int) -> list[Tensor]:
    """Both moments of every weight, made where there are none as they are after so many steps."""
    found = []
    for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
        state = optimizer.state[weight]
        if not state:
            state["step"] = torch.tensor(float(steps))
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        found += [state["exp_avg"], state["exp_avg_sq"]]
    return found
