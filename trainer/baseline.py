"""What the words alone would have given: behaviour cloning for as long as the run itself took."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from trainer.adapters import merged
from trainer.course import Course, Point
from trainer.dataset import Ints
from trainer.evaluation import Quality
from trainer.losses import behaviour_cloning
from trainer.precision import round_weights
from trainer.progress import Done, Progress
from trainer.student import give
from trainer.training import Audience, Training, time_steps


@dataclass(frozen=True, slots=True)
class Baseline:
    """A student of the same start, data and seconds that never saw a distribution.

    Attributes:
        steps: As many as fit into the time.
        seconds: They took.
        best_step: Whose weights were kept.
        heldout: Measured on the same rows as the run's own.
        points: Its looks at held-out rows.
    """

    steps: int
    seconds: float
    best_step: int
    heldout: Quality
    points: list[Point]


def clone_behaviour(
    training: Training,
    start: Mapping[str, Tensor],
    measured: Ints,
    seconds: float,
    scratch: Path,
    audience: Audience,
) -> Baseline:
    """Train on the answers' words alone, from the same start, for so many seconds.

    Args:
        training: Of the run; its student is used and changed.
        start: Weights that the run began with.
        measured: Held-out rows to measure on.
        seconds: That the run's steps took.
        scratch: A folder for what is needed meanwhile.
        audience: Told of every step.
    """
    student, cloning = training.student, _cloning(training, start, seconds)
    audience.expect(cloning.recipe.steps)
    progress, course = Progress(scratch, "baseline"), Course(scratch / "course")
    done = cloning.run(cloning.learner(), course, Done(), audience.step, progress)
    best = course.take_best(student)
    finished = merged(student)
    round_weights(finished)
    heldout = training.examination.of(finished, measured)
    return Baseline(done.steps, done.seconds, best.step, heldout, course.points)


def follow_cloning(training: Training, start: Mapping[str, Tensor]) -> None:
    """Take another process's part in it, and write nothing."""
    cloning = _cloning(training, start, seconds=0)
    cloning.follow(cloning.learner(), Done())


def _cloning(training: Training, start: Mapping[str, Tensor], seconds: float) -> Training:
    """Time a few steps and go back to the start; the first process's seconds count."""
    cloning = replace(training, recipe=replace(training.recipe, loss=behaviour_cloning))
    give(training.student, start)
    tried = time_steps(cloning)
    give(training.student, start)
    steps = training.group.same(max(1, round(seconds / tried.seconds * tried.steps)))
    return replace(
        cloning,
        recipe=replace(cloning.recipe, steps=steps),
        eval_every=max(1, training.eval_every * steps // training.recipe.steps),
        trackers=(),
    )
