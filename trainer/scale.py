"""The processes that train one student together, and what they tell each other."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from capture.errors import CaptureError
from trainer.config import TrainerConfig
from trainer.dataset import Ints
from trainer.errors import TrainerError

T = TypeVar("T")

# While the first process makes or measures a student, the others wait.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Group:
    """One process's place among those of a run.

    Attributes:
        rank: Its number; 0 leads: it alone measures, writes and reports.
        size: How many there are.
        is_sharded: Whether the student under training is divided among them.
        words: Carries what is no tensor of the model; None for a process alone.
    """

    rank: int = 0
    size: int = 1
    is_sharded: bool = False
    words: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process is the first."""
        return self.rank == 0

    def first(self, make: Callable[[], T]) -> T:
        """Let the first process alone do something, and give all of them what came of it.

        Raises:
            CaptureError: In all of them if the first raises it.
            TrainerError: Likewise.
        """
        if self.words is None:
            return make()
        said: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.leads:
            try:
                said = [(make(), None)]
            except (CaptureError, TrainerError) as error:
                said = [(None, error)]
        dist.broadcast_object_list(said, src=0, group=self.words)
        value, failure = said[0]
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]  # of the type that make returned

    def same(self, value: T) -> T:
        """The first process's value, whatever the others made of it."""
        return self.first(lambda: value)

    def spread(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors by those of the first process."""
        if self.words is not None:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def mean(self, value: Tensor) -> Tensor:
        """A scalar's mean over the processes."""
        if self.words is None:
            return value
        dist.all_reduce(value)
        return value / self.size

    def part(self, lengths: Ints) -> tuple[Ints, float]:
        """Which of a batch's examples are this process's.

        Returns:
            Their positions and 1; the first one's and 0 if there are none left for it, because
            it has to take part in the step all the same.
        """
        own = divide(lengths, self.size)[self.rank]
        return (own, 1.0) if len(own) else (np.arange(1), 0.0)


ALONE = Group()


def divide(lengths: Ints, size: int) -> list[Ints]:
    """Divide examples into so many parts of about as many tokens, each in the old order (pure).

    The longest example goes to the part that is shortest so far, and so on. A part may be empty.
    """
    totals = np.zeros(size, dtype=np.int64)
    owner = np.zeros(len(lengths), dtype=np.int64)
    for position in np.argsort(-lengths, kind="stable"):
        owner[position] = totals.argmin()
        totals[owner[position]] += lengths[position]
    return [np.flatnonzero(owner == part) for part in range(size)]


def joined(config: TrainerConfig) -> Group:
    """Join the group that a launcher has prepared, whose size it decides.

    On GPUs each process takes the one with its number on the machine.
    """
    if not dist.is_initialized():  # Ray has done it
        if config.device == "cuda":
            torch.cuda.set_device(dist.get_node_local_rank(fallback_rank=0))
        dist.init_process_group("nccl" if config.device == "cuda" else "gloo", timeout=PATIENCE)
    words = dist.new_group(backend="gloo", timeout=PATIENCE)
    sharded = config.scale.shard == "full"
    return Group(dist.get_rank(), dist.get_world_size(), sharded, words)


def handed_on(
    group: Group, make: Callable[[], tuple[PreTrainedModel, T]], device: torch.device
) -> tuple[PreTrainedModel, T]:
    """Let the first process make a model in float32 and note something, and give both to all.

    Made by each, it might differ: measurements decide the shape of a cut, and rounding depends on
    the machine.

    Raises:
        CaptureError: In all of them if the first raises it.
        TrainerError: Likewise.
    """
    if group.words is None:
        return make()
    made: list[PreTrainedModel] = []

    def describe() -> tuple[PretrainedConfig, T]:
        model, noted = make()
        made.append(model)
        return model.config, noted

    config, noted = group.first(describe)
    if not made:
        made.append(AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device))
    with torch.no_grad():
        group.spread([*made[0].parameters(), *made[0].buffers()])
    return made[0], noted
