"""One run's steps with all that happens beside them: looks at held-out rows, curves, saving."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple, Protocol

import torch
from transformers import PreTrainedModel

from trainer.course import Course, Point
from trainer.dataset import Dataset, Ints
from trainer.errors import DivergedError, TooLargeError
from trainer.examination import Examination
from trainer.guard import EntropyGuard
from trainer.learner import Learner
from trainer.loop import Recipe, Step, train
from trainer.progress import Done, Progress
from trainer.scale import ALONE, Group
from trainer.shards import make_learner
from trainer.tracking import Board, Tracker

OnStep = Callable[[Step], None]

SCALARS_EVERY = 10  # steps between two points of a TensorBoard curve
SAVE_SECONDS = 60.0  # what an interrupted run loses at most
CPU_IS_FULL = "can't allocate memory"  # in what torch says
WARM_STEPS = 2  # the first steps allocate, and are slower
TIMED_STEPS = 6


class Audience(Protocol):
    """Who is told how a run goes."""

    def say(self, words: str) -> None:
        """Name the work in hand."""

    def expect(self, steps: int) -> None:
        """Begin to count so many steps."""

    def step(self, step: Step) -> None:
        """Count a finished step."""


@dataclass(frozen=True, slots=True)
class Training:
    """What to train on what.

    Attributes:
        student: Trained in place.
        rows: To learn from.
        looked_at: Held-out rows that weights are chosen by.
        examination: What they are measured with.
        eval_every: Steps between two looks at them.
        guard: Ends a run whose student it finds too sure.
        group: Of the processes that train it together.
        trackers: That are told its curves beside TensorBoard.
    """

    student: PreTrainedModel
    dataset: Dataset
    rows: Ints
    looked_at: Ints
    examination: Examination
    recipe: Recipe
    eval_every: int
    guard: EntropyGuard | None = None
    group: Group = ALONE
    trackers: Sequence[Tracker] = ()

    def learner(self) -> Learner:
        """What trains the student; every process of the group has to call this."""
        return make_learner(self.student, self.group)

    def run(
        self, learner: Learner, course: Course, done: Done, on_step: OnStep, progress: Progress
    ) -> Done:
        """Train from some step on to the last, or to the look at which the guard ends the run.

        In a group this is the first process's part.

        Args:
            learner: Of the student, as it was after that step.
            course: Told of every look.
            done: How far the run has come.
            on_step: Called after every step.
            progress: Where everything is saved, at least once a minute and at the end.

        Raises:
            DivergedError: If the loss is no number any more; what was saved before is left.
        """
        if self.group.same(self._is_too_sure(course)):
            return done
        saved_at = time.monotonic()
        steps = train(learner, self.dataset, self.rows, self.recipe, done.steps)
        with Board(progress.tensorboard, done.steps, self.trackers) as board:
            began = time.perf_counter()
            for step in steps:
                on_step(step)
                ends, looks = self._is_due(step), self._is_due(step, self.eval_every)
                if looks or self._is_due(step, SCALARS_EVERY):
                    self._check(step)
                # Behind what waits for the device.
                seconds = done.seconds + time.perf_counter() - began
                done = Done(step.number, done.tokens + step.tokens, seconds)
                if self._is_due(step, SCALARS_EVERY):
                    draw(board, step, done)
                if looks:
                    learner.gather()
                    self._add(course, board, step, done)
                    ends = self.group.same(ends or self._is_too_sure(course))
                is_late = self.group.same(time.monotonic() - saved_at >= SAVE_SECONDS)
                if is_late or ends:
                    board.flush()
                    learner.save(progress, done)
                    saved_at = time.monotonic()
                if ends:
                    break
                began = time.perf_counter()
        return done

    def _is_too_sure(self, course: Course) -> bool:
        """Whether the guard objects to the last look."""
        if self.guard is None or not course.points:
            return False
        return self.guard.is_broken(course.points[-1].quality)

    def follow(self, learner: Learner, done: Done) -> None:
        """Take another process's part in what the first one runs, and write nothing.

        Raises:
            DivergedError: As the first one does.
        """
        if self.group.same(value=False):
            return
        for step in train(learner, self.dataset, self.rows, self.recipe, done.steps):
            ends = self._is_due(step)
            if self._is_due(step, SCALARS_EVERY) or self._is_due(step, self.eval_every):
                self._check(step)
            if self._is_due(step, self.eval_every):
                learner.gather()
                ends = self.group.same(ends)
            if self.group.same(value=False) or ends:
                learner.save(None, done)
            if ends:
                return

    def _is_due(self, step: Step, every: int | None = None) -> bool:
        """Whether a step is one of those, or the last."""
        is_one = every is not None and step.number % every == 0
        return is_one or step.number == self.recipe.steps

    def _check(self, step: Step) -> None:
        """Look at the loss, which waits for the device."""
        if not step.loss.isfinite():
            raise DivergedError(
                f"the loss is {step.loss.item()} at step {step.number}: lower learning_rate "
                f"({self.recipe.learning_rate}) or raise warmup ({self.recipe.warmup})"
            )

    def _add(self, course: Course, board: Board, step: Step, done: Done) -> None:
        quality = self.examination.of(self.student, self.looked_at)
        self.student.train()
        found = {f"heldout/{name}": value for name, value in asdict(quality).items()}
        known = {name: value for name, value in found.items() if value is not None}
        board.draw(known, step.number)
        point = Point(step.number, done.tokens, done.seconds, step.loss.item(), quality)
        course.add(self.student, point)


@contextmanager
def memory_errors(batch_tokens: int) -> Iterator[None]:
    """Say what to do about a step that does not fit, on a GPU or a CPU.

    Raises:
        TooLargeError: If one does not; what was saved before is left.
    """
    try:
        yield
    except RuntimeError as error:  # torch has a class of its own for GPUs only
        if not isinstance(error, torch.OutOfMemoryError) and CPU_IS_FULL not in str(error):
            raise
        raise TooLargeError(
            f"a step with batch_tokens = {batch_tokens} does not fit into memory: lower it, or "
            "choose a smaller student, either of which makes another run that begins anew; with "
            "the same settings and more memory the run goes on from what it saved"
        ) from error


def draw(board: Board, step: Step, done: Done) -> None:
    """Add a step to the curves."""
    values = {
        "train/loss_nats": step.loss.item(),
        "train/grad_norm": step.grad_norm.item(),
        "train/learning_rate": step.learning_rate,
        "train/tokens": done.tokens,
    }
    board.draw(values, step.number)


class Timed(NamedTuple):
    """A few steps of a run, timed."""

    steps: int
    tokens: int
    seconds: float


def time_steps(training: Training) -> Timed:
    """Time a few real steps; the student is changed by them."""
    recipe = replace(training.recipe, steps=WARM_STEPS + TIMED_STEPS)
    steps = train(training.learner(), training.dataset, training.rows, recipe)
    for _ in range(WARM_STEPS):
        next(steps)
    began = time.perf_counter()
    tokens = sum(step.tokens for step in steps)
    return Timed(TIMED_STEPS, tokens, time.perf_counter() - began)
