"""One distillation: from rows of the log to a checkpoint and its measurements."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Self

import pyarrow as pa
import torch
from pydantic import JsonValue
from transformers import PreTrainedModel

from capture.revision import model_revision
from trainer.adapters import add_adapters, merged
from trainer.baseline import Baseline, clone_behaviour, follow_cloning
from trainer.checkpoint import replacing, save_checkpoint, write_json
from trainer.config import TrainerConfig
from trainer.course import Course, Point, divide
from trainer.dataset import Dataset, Ints, from_table, split
from trainer.duplicates import distinct
from trainer.errors import DatasetError
from trainer.evaluation import Quality, evaluate
from trainer.loop import Recipe
from trainer.losses import LOSSES, mixed
from trainer.manifest import Lineage
from trainer.precision import round_weights
from trainer.progress import Done, Progress
from trainer.report import write_report
from trainer.scale import ALONE, Group, handed_on
from trainer.start import check_fits, device_of, make_student
from trainer.student import count_parameters, weights_of
from trainer.training import Audience, Training

Snapshot = dict[str, JsonValue]
Report = Callable[[str], None]

METRICS_VERSION = 1
LOOKS = 10  # at held-out rows, unless told otherwise


@dataclass(frozen=True, slots=True)
class Metrics:
    """The content of ``metrics.json``.

    Attributes:
        rows: Examples trained on; those held out are counted in ``heldout``.
        duplicates_dropped: Examples that were not, because they, or nearly they, were there.
        tokens: Run in training, padding included.
        seconds: Of training alone.
        heldout: Of the weights as they are saved, in bfloat16.
        best_step: After which they were taken.
        points: Looks at held-out rows along the way.
        baseline: Behaviour cloning for as long; None if it was not wanted.
    """

    loss: str
    steps: int
    rows: int
    duplicates_dropped: int
    tokens: int
    seconds: float
    tokens_per_second: float
    student_parameters: int
    teacher_parameters: int
    heldout_before_training: Quality
    heldout: Quality
    best_step: int
    points: list[Point]
    baseline: Baseline | None
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Distillation:
    """A run, read and checked, whose first step may follow.

    Attributes:
        snapshot: Identity of the rows.
        train_rows: Examples to learn from.
        heldout_rows: Examples to measure on, of other prompts.
        student: Float32, on the run's device.
        num_dropped: Duplicates that are not trained on.
        teacher_parameters: For comparison.
        group: Of the processes that train the student together.
    """

    config: TrainerConfig
    snapshot: Snapshot
    dataset: Dataset
    train_rows: Ints
    heldout_rows: Ints
    student: PreTrainedModel
    num_dropped: int
    teacher_parameters: int
    group: Group = ALONE

    @classmethod
    def prepare(
        cls,
        config: TrainerConfig,
        table: pa.Table,
        snapshot: Snapshot,
        report: Report,
        group: Group = ALONE,
    ) -> Self:
        """Check the rows against the teacher and make the student to start from.

        Args:
            config: Of the run.
            table: Rows of the log's ``examples`` view, with ``trainer.dataset.COLUMNS``.
            snapshot: What names those rows again.
            report: Called with a few words before each slow part.
            group: Whose first process makes the student, for all.

        Raises:
            TrainerError: If the rows or the models cannot be used.
            ConfigError: If the wanted cut cannot be had.
        """
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        device = device_of(config.device)
        dataset = from_table(table, config.teacher)
        if config.loss == "forward_kl_draws" and not len(dataset.tail_draws.values):
            raise DatasetError(
                "the log holds no ids drawn from the tail: capture with [capture] tail_draws = 4, "
                'or train with loss = "forward_kl"'
            )
        every_row, heldout_rows = split(dataset, config.heldout_fraction)
        report("looking for duplicates")
        train_rows = distinct(dataset, every_row, heldout_rows, config.duplicates)
        num_dropped = len(every_row) - len(train_rows)
        make = partial(make_student, config, dataset, train_rows, report)
        student, teacher_parameters = handed_on(group, make, device)
        if config.lora_rank is not None:
            add_adapters(student, config.lora_rank, config.seed)
        check_fits(dataset, student)
        counts = (num_dropped, teacher_parameters)
        return cls(config, snapshot, dataset, train_rows, heldout_rows, student, *counts, group)

    @property
    def recipe(self) -> Recipe:
        """Settings of the loop."""
        config = self.config
        return Recipe(
            mixed(LOSSES[config.loss], config.loss_share),
            config.steps,
            config.batch_tokens,
            config.learning_rate,
            config.warmup,
            config.seed,
        )

    def run(self, audience: Audience) -> Metrics:
        """Train, measure, write the checkpoint, curves, ``metrics.json`` and ``report.html``.

        In a group this is the first process's part; the others ``follow``.

        Each file appears whole or not at all; what an earlier run left is replaced at the end. One
        that was interrupted goes on from what ``progress/`` holds, to the same weights.

        Raises:
            DivergedError: If the loss is no number any more.
        """
        config, out = self.config, self.config.out
        training, measured = self._training()
        audience.say("measuring the student before training")
        before, start = self._measure(measured, self.student), weights_of(self.student)
        progress = Progress(out / "progress", self._identity())
        done, course = self._train(training, progress, audience)
        best = course.take_best(self.student)
        audience.say("measuring on held-out rows")
        finished = merged(self.student)
        round_weights(finished)  # as they will be saved
        after = self._measure(measured, finished)
        save_checkpoint(
            finished,
            config.teacher,
            out / "checkpoint",
            lineage=self._lineage(),
            quality={name: float(value) for name, value in asdict(after).items()},
        )
        with replacing(out / "tensorboard") as scalars:
            shutil.copytree(progress.tensorboard, scalars, dirs_exist_ok=True)
        baseline = None
        if self._is_compared:
            audience.say("behaviour cloning, to compare")
            scratch = out / "progress" / "baseline"
            baseline = clone_behaviour(training, start, measured, done.seconds, scratch, audience)
        metrics = Metrics(
            loss=config.loss,
            steps=config.steps,
            rows=len(self.train_rows),
            duplicates_dropped=self.num_dropped,
            tokens=done.tokens,
            seconds=done.seconds,
            tokens_per_second=done.tokens / done.seconds,
            student_parameters=count_parameters(finished),
            teacher_parameters=self.teacher_parameters,
            heldout_before_training=before,
            heldout=after,
            best_step=best.step,
            points=course.points,
            baseline=baseline,
            snapshot=self.snapshot,
        )
        write_json(out / "metrics.json", {"format_version": METRICS_VERSION, **asdict(metrics)})
        write_report(asdict(metrics), out / "report.html")
        progress.remove()
        return metrics

    def follow(self) -> None:
        """Take another process's part in what the first one runs, and write nothing.

        Raises:
            DivergedError: As the first one does.
        """
        training, _ = self._training()
        start, learner = weights_of(self.student), training.learner()
        training.follow(learner, learner.restore(None))
        if self._is_compared:
            follow_cloning(training, start)

    @property
    def _is_compared(self) -> bool:
        return self.config.baseline and self.config.loss != "behaviour_cloning"

    def _training(self) -> tuple[Training, Ints]:
        """What to train on what, and the held-out rows to measure on."""
        config = self.config
        looked_at, measured = divide(self.dataset, self.heldout_rows, config.eval_rows)
        every = config.eval_every or max(1, config.steps // LOOKS)
        given = (self.student, self.dataset, self.train_rows, looked_at, self.recipe)
        return Training(*given, every, self.group), measured

    def _train(
        self, training: Training, progress: Progress, audience: Audience
    ) -> tuple[Done, Course]:
        learner = training.learner()
        done = learner.restore(progress)
        if done.steps:
            audience.say(f"going on after step {done.steps}")
        course = Course(self.config.out / "progress" / "course", done.steps)
        return training.run(learner, course, done, audience.step, progress), course

    def _identity(self) -> str:
        """What decides the weights, digested: data, student and recipe."""
        lineage = self._lineage().model_dump_json()
        threads = (self.config.threads, self.config.device)
        return hashlib.sha256(f"{lineage} {threads}".encode()).hexdigest()

    def _measure(self, rows: Ints, student: PreTrainedModel) -> Quality:
        return evaluate(student, self.dataset, rows, 4 * self.config.batch_tokens)

    def _lineage(self) -> Lineage:
        config = self.config
        started_from = config.teacher if config.student is None else config.student
        recipe = config.model_dump(
            mode="json",
            exclude={"log", "teacher", "student", "out", "threads", "device", "baseline", "scale"},
        )
        return Lineage(
            snapshot=self.snapshot,
            teacher_revision=self.dataset.model_revision,
            parent_revision=model_revision(started_from),
            recipe=recipe,
        )
