"""What trains a student: one process, several with a copy each (DDP), or with a share each (FSDP2).

Shares are gathered whenever the student is looked at or saved. So the whole student, in float32,
has to fit beside them: a fifth of what training holds. Gradients, the optimizer's state and the
weights under training are divided.
"""

import copy

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from trainer.dataset import Dataset, Ints
from trainer.gate import Gate
from trainer.learner import Learner, Objective, moments
from trainer.loop import make_optimizer
from trainer.losses import Loss
from trainer.progress import Done, Progress
from trainer.scale import Group


def make_learner(student: PreTrainedModel, group: Group) -> Learner:
    """Return what trains a student in this group; every process of it has to call this."""
    if group.words is None:
        return Learner(student, make_optimizer(student))
    if group.is_sharded:
        return Shards(student, group)
    engine = DistributedDataParallel(Objective(student))
    return Learner(student, make_optimizer(student), group, engine)


class Shards(Learner):
    """Trains a divided copy of the student.

    Attributes:
        student: Whole, as it was at the last ``gather``.
    """

    def __init__(self, student: PreTrainedModel, group: Group) -> None:
        divided = copy.deepcopy(student).train()
        engine = _sharded(Objective(divided), group)
        self._pairs = list(zip(student.parameters(), divided.parameters(), strict=True))
        super().__init__(student, make_optimizer(divided), group, engine)

    def step(self, dataset: Dataset, rows: Ints, loss: Loss, gate: Gate) -> tuple[Tensor, Tensor]:
        """Take a step of which each process computes its part of the batch."""
        value, norm = super().step(dataset, rows, loss, gate)
        return value, _whole(norm)

    def gather(self) -> None:
        """Copy all shares into the whole student."""
        with torch.no_grad():
            for whole, share in self._pairs:
                whole.copy_(_whole(share))

    def save(self, progress: Progress | None, done: Done) -> None:
        """Gather everything, a tensor at a time; the first process keeps it in host memory."""
        self.gather()
        gathered = make_optimizer(self.student)
        for whole, share in self._pairs:
            for name, value in self.optimizer.state.get(share, {}).items():
                entire = _whole(value)
                if progress is not None:
                    gathered.state[whole][name] = entire.cpu()
        if progress is not None:
            progress.save(self.student, gathered, done)

    def restore(self, progress: Progress | None) -> Done:
        """Give each process its share of what the first one finds saved."""
        found = make_optimizer(self.student)
        done = self._load(progress, found)
        pairs: list[tuple[Tensor, Tensor]] = list(self._pairs)
        if done.steps:
            states = (moments(optimizer, done.steps) for optimizer in (found, self.optimizer))
            pairs += zip(*states, strict=True)
        with torch.no_grad():
            for whole, share in pairs:
                _deal_out(whole, share)
        return done


def _sharded(objective: Objective, group: Group) -> nn.Module:
    """Divide each block, and what is left with the loss as a last one."""
    mesh = init_device_mesh(objective.student.device.type, (group.size,))
    for module in (*objective.student.model.layers, objective):
        fully_shard(module, mesh=mesh)
        module.set_force_sum_reduction_for_comms(enable=True)  # gloo has no mean
    return objective


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _deal_out(whole: Tensor, share: Tensor) -> None:
    """Overwrite every process's share by that of the first one's tensor."""
    if isinstance(share, DTensor):
        dealt = distribute_tensor(whole.detach(), share.device_mesh, share.placements)
        share.copy_(dealt)
