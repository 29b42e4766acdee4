"""What several training processes do in tests, for a launcher to import.

``python -c "from tests.support.scaled import main; main()" WORKER run.toml`` lets the processes
that ``run.toml`` wants do one of ``WORKERS`` and prints what the first one returns.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

import trainer.training as training_module
from capture.log import Snapshot
from trainer.config import TrainerConfig, load
from trainer.dataset import Flags
from trainer.distillation import Distillation
from trainer.launch import launch
from trainer.learner import Learner
from trainer.loop import Step, train
from trainer.part import prepare, work
from trainer.progress import Done, Progress
from trainer.scale import Group, joined
from trainer.shards import make_learner

KILLED_AFTER = 12  # steps


def learn(run: Distillation, learner: Learner, last: int, done: Done) -> list[tuple[float, float]]:
    """Losses and gradient norms of the steps from some one on to another."""
    recipe = run.recipe
    steps = train(learner, run.material.dataset, run.material.train_rows, recipe, done.steps)
    found = []
    for step in steps:
        found.append((step.loss.item(), float(step.grad_norm)))
        if step.number == last:
            break
    return found


def course(config: TrainerConfig, group: Group, snapshot: Snapshot, save_to: Path) -> Any:
    """Half a run, saved, and its other half."""
    run = prepare(config, say_nothing, group, snapshot)
    learner, half = make_learner(run.student, group), config.steps // 2
    found = learn(run, learner, half, Done())
    learner.save(Progress(save_to, "a run") if group.leads else None, Done(half))
    return found + learn(run, learner, config.steps, Done(half))


def resumed(config: TrainerConfig, group: Group, snapshot: Snapshot, saved: Path) -> Any:
    """The other half of a run that somebody else began."""
    run = prepare(config, say_nothing, group, snapshot)
    learner = make_learner(run.student, group)
    done = learner.restore(Progress(saved, "a run") if group.leads else None)
    return learn(run, learner, config.steps, done)


def both(config: TrainerConfig, snapshot: Snapshot, _is_distinct: Flags | None) -> Any:
    """A run with whole copies, one with shares, and the same for what one process has begun."""
    group = joined(config)
    copies, shares = replace(group, is_sharded=False), replace(group, is_sharded=True)
    found = {
        "copies": course(config, copies, snapshot, config.out / "copies"),
        "shares": course(config, shares, snapshot, config.out / "shares"),
        "copies after one": resumed(config, copies, snapshot, config.out / "alone"),
        "shares after one": resumed(config, shares, snapshot, config.out / "alone"),
        "processes": dist.get_world_size(),
    }
    dist.destroy_process_group()
    return found


def killed(config: TrainerConfig, snapshot: Snapshot, is_distinct: Flags | None) -> Any:
    """A run that saves after every step, and one of whose processes is killed in the middle."""
    training_module.SAVE_SECONDS = 0
    vars(training_module)["train"] = partial(dying, config.out)
    return work(config, snapshot, is_distinct)


def dying(out: Path, learner: Learner, *given: Any) -> Iterator[Step]:
    """The loop, in which the last process is killed once; the first notes where it begins."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    if rank == 0:
        with (out / "starts").open("a") as starts:
            starts.write(f"{given[-1]}\n")
    for step in train(learner, *given):
        if rank == last and step.number == KILLED_AFTER and not (out / "killed").exists():
            (out / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield step


def say_nothing(_words: str) -> None: ...


WORKERS = {"both": both, "killed": killed}


def main() -> None:
    result: Any = launch(WORKERS[sys.argv[1]], load(Path(sys.argv[2])))
    sys.stdout.write(json.dumps(result, default=asdict))
