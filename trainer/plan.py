"""What a distillation would read, cost and take, from a few real steps."""

import resource
from dataclasses import dataclass
from typing import Literal

import torch

from trainer.distillation import Distillation
from trainer.student import count_parameters
from trainer.training import Training, time_steps

Gpu = Literal["l4", "a100", "h100", "h200", "b200"]
# Dense bfloat16 operations per second, by NVIDIA's data sheets; a run reaches a part of them.
PEAK_FLOPS: dict[Gpu, float] = {
    "l4": 121e12,
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
    "b200": 2250e12,
}
UTILISATION = 0.3
FLOPS_PER_WEIGHT = 6  # of training, per token: two forwards, four back


@dataclass(frozen=True, slots=True)
class Plan:
    """Expectations of a run.

    Attributes:
        rows: Examples to learn from.
        read_bytes: Of the snapshot's columns, as they lie in memory.
        epochs: How often each example is seen.
        tokens: Trained on, padding included.
        tokens_per_second: Of training here.
        preparing_seconds: Spent on reading and cutting, just now.
        training_seconds: Of all steps, at the speed just measured.
        baseline_seconds: Of behaviour cloning beside it.
        hours: Of both, here or on the GPU that was named. There it is an estimate: a third of the
            GPU's peak, so a large student; a small one waits for its launches.
        cost: At the given price; None without one.
        peak_memory_bytes: Of this process up to now, these steps included.
        disk_bytes: Of the checkpoint's weights in bfloat16.
    """

    rows: int
    heldout_rows: int
    duplicates_dropped: int
    completion_tokens: int
    read_bytes: int
    steps: int
    epochs: float
    tokens: int
    student_parameters: int
    teacher_parameters: int
    tokens_per_second: float
    preparing_seconds: float
    training_seconds: float
    baseline_seconds: float
    hours: float
    cost: float | None
    peak_memory_bytes: int
    disk_bytes: int


def make_plan(
    run: Distillation,
    preparing_seconds: float,
    gpu: Gpu | None = None,
    price_per_hour: float | None = None,
) -> Plan:
    """Time a few steps; the run's student is changed by them and must not be used afterwards."""
    config, material = run.config, run.material
    dataset, rows = material.dataset, material.train_rows
    training = Training(
        *(run.student, dataset, rows, material.heldout_rows),
        *(run.examination, run.recipe, config.steps),
    )
    timed = time_steps(training)
    speed = timed.tokens / timed.seconds
    tokens = round(timed.tokens / timed.steps * config.steps)
    parameters = count_parameters(run.student)
    seconds = tokens / speed
    rounds = 2 if run.has_baseline else 1
    on_gpu = None if gpu is None else gpu_seconds(parameters, tokens, gpu)
    hours = rounds * (seconds if on_gpu is None else on_gpu) / 3600
    return Plan(
        rows=len(rows),
        heldout_rows=len(material.heldout_rows),
        duplicates_dropped=run.num_dropped,
        completion_tokens=int(dataset.completion_ids.lengths[rows].sum()),
        read_bytes=dataset.num_bytes,
        steps=config.steps,
        epochs=tokens / float(dataset.lengths[rows].sum()),
        tokens=tokens,
        student_parameters=parameters,
        teacher_parameters=run.teacher_parameters,
        tokens_per_second=speed,
        preparing_seconds=preparing_seconds,
        training_seconds=seconds,
        baseline_seconds=(rounds - 1) * seconds,
        hours=hours,
        cost=None if price_per_hour is None else hours * price_per_hour,
        peak_memory_bytes=peak_memory(run.student.device),
        disk_bytes=2 * parameters,
    )


def gpu_seconds(parameters: int, tokens: int, gpu: Gpu) -> float:
    """Training time at a usual share of a GPU's peak (pure)."""
    return FLOPS_PER_WEIGHT * parameters * tokens / (UTILISATION * PEAK_FLOPS[gpu])


def peak_memory(device: torch.device) -> int:
    """The most memory that was held so far, in bytes: the GPU's, or this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
