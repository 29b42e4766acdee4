"""What a distillation would read, cost and take, from a few real steps."""

from dataclasses import dataclass

from trainer.distillation import Distillation
from trainer.student import count_parameters
from trainer.training import Training, time_steps


@dataclass(frozen=True, slots=True)
class Plan:
    """Expectations of a run.

    Attributes:
        rows: Examples to learn from.
        epochs: How often each example is seen.
        tokens_per_second: Of training, padding included.
        preparing_seconds: Spent on reading and cutting, just now.
        training_seconds: Of all steps, at the speed just measured.
        disk_bytes: Of the checkpoint's weights in bfloat16.
    """

    rows: int
    heldout_rows: int
    completion_tokens: int
    steps: int
    epochs: float
    student_parameters: int
    teacher_parameters: int
    tokens_per_second: float
    preparing_seconds: float
    training_seconds: float
    disk_bytes: int


def make_plan(run: Distillation, preparing_seconds: float) -> Plan:
    """Time a few steps; the run's student is changed by them and must not be used afterwards."""
    training = Training(
        *(run.student, run.dataset, run.train_rows, run.heldout_rows, run.recipe), run.config.steps
    )
    timed = time_steps(training)
    speed = timed.tokens / timed.seconds
    tokens = timed.tokens / timed.steps * run.config.steps
    lengths = run.dataset.lengths[run.train_rows]
    parameters = count_parameters(run.student)
    return Plan(
        rows=len(run.train_rows),
        heldout_rows=len(run.heldout_rows),
        completion_tokens=int(run.dataset.completion_ids.lengths[run.train_rows].sum()),
        steps=run.config.steps,
        epochs=tokens / float(lengths.sum()),
        student_parameters=parameters,
        teacher_parameters=run.teacher_parameters,
        tokens_per_second=speed,
        preparing_seconds=preparing_seconds,
        training_seconds=tokens / speed,
        disk_bytes=2 * parameters,
    )
