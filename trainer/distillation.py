"""One distillation: from rows of the log to a checkpoint and its measurements."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import JsonValue
from transformers import PreTrainedModel

from capture.revision import model_revision
from trainer.adapters import add_adapters, merged
from trainer.baseline import Baseline, clone_behaviour
from trainer.checkpoint import replacing, save_checkpoint, write_json
from trainer.config import TrainerConfig
from trainer.course import Course, Point, by_metric, divide
from trainer.dataset import Dataset, Ints, answered, from_table, split
from trainer.duplicates import distinct
from trainer.entries import fit_vocabulary, words_only
from trainer.errors import DatasetError
from trainer.evaluation import Quality
from trainer.examination import Examination
from trainer.guard import EntropyGuard
from trainer.loop import Recipe, make_optimizer
from trainer.losses import LOSSES, mixed
from trainer.manifest import Lineage
from trainer.metrics import EXACT_MATCH, open_metric
from trainer.precision import open_device, round_weights
from trainer.progress import Done, Progress
from trainer.reduction import Reduction
from trainer.report import write_report
from trainer.rollouts import Rollouts, read_rollouts
from trainer.student import count_parameters, open_student, open_teacher, weights_of
from trainer.task import Task
from trainer.training import Audience, Training

Snapshot = dict[str, JsonValue]
Report = Callable[[str], None]

METRICS_VERSION = 1
LOOKS = 10  # at held-out rows, unless told otherwise


@dataclass(frozen=True, slots=True)
class Metrics:
    """The content of ``metrics.json``.

    Attributes:
        metric: What ``metric`` of every measurement is.
        rows: Examples trained on; those held out are counted in ``heldout``.
        duplicates_dropped: Examples that were not, because they, or nearly they, were there.
        flagged_rows: Examples, held-out ones too, of which the tokens alone count.
        tokens: Run in training, padding included.
        seconds: Of training alone.
        heldout: Of the weights as they are saved, in bfloat16.
        best_step: After which they were taken; 0 if they are those it began with.
        points: Looks at held-out rows along the way.
        baseline: Behaviour cloning for as long; None if it was not wanted, or if the answers are
            the student's own.
        rollouts: Whose answers the log holds, if they are a student's; ``exact_match`` compares
            with those then, and says nothing of right answers.
        stopped: Why the run ended before its last step; None if it did not.
    """

    loss: str
    metric: str
    steps: int
    rows: int
    duplicates_dropped: int
    flagged_rows: int
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
    rollouts: dict[str, JsonValue] | None
    stopped: str | None
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Distillation:
    """A run, read and checked, whose first step may follow.

    Attributes:
        snapshot: Identity of the rows.
        train_rows: Examples to learn from.
        heldout_rows: Examples to measure on, of other prompts.
        examination: What they are measured with.
        student: Float32, on the run's device.
        num_dropped: Duplicates that are not trained on.
        num_flagged: Rows, held-out ones among them, whose tokens alone count.
        teacher_parameters: For comparison.
        rollouts: Whose answers the rows are, if they are a student's.
    """

    config: TrainerConfig
    snapshot: Snapshot
    dataset: Dataset
    train_rows: Ints
    heldout_rows: Ints
    examination: Examination
    student: PreTrainedModel
    num_dropped: int
    num_flagged: int
    teacher_parameters: int
    rollouts: Rollouts | None

    @classmethod
    def prepare(
        cls, config: TrainerConfig, table: pa.Table, snapshot: Snapshot, report: Report
    ) -> Self:
        """Check the rows against the teacher and make the student to start from.

        Args:
            config: Of the run.
            table: Rows of the log's ``examples`` or ``answers`` view, with
                ``trainer.dataset.COLUMNS`` and, of the latter, ``flags``.
            snapshot: What names those rows again.
            report: Called with a few words before each slow part.

        Raises:
            TrainerError: If the rows or the models cannot be used.
            ConfigError: If the wanted cut cannot be had, or the answers are another student's.
        """
        rollouts = read_rollouts(config.log)
        if rollouts is not None:
            rollouts.check(config)
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        device = open_device(config.device)
        examined = None if config.metric == EXACT_MATCH else open_metric(config.metric)
        report("reading the teacher")
        teacher = open_teacher(config.teacher, device)
        dataset, num_flagged = _read(table, config.teacher)
        if config.loss == "forward_kl_draws" and not len(dataset.tail_draws.values):
            raise DatasetError(
                "the log holds no ids drawn from the tail: capture with [capture] tail_draws = 4, "
                'or train with loss = "forward_kl"'
            )
        every_row, heldout_rows = split(dataset, config.heldout_fraction)
        report("looking for duplicates")
        train_rows = distinct(dataset, every_row, heldout_rows, config.duplicates)
        num_dropped = len(every_row) - len(train_rows)
        if config.student is not None:
            student = open_student(config.student, config.teacher, device)
            if config.lora_rank is not None:
                add_adapters(student, config.lora_rank, config.seed)
        else:
            reduction = Reduction(teacher, dataset, train_rows, config.seed, report)
            student = reduction.run(config.cut)
        dataset = _fitted(dataset, student)
        task = None if examined is None else Task.of(examined, config.teacher)
        examination = Examination(dataset, 4 * config.batch_tokens, task, config.eval_rows)
        rows = (train_rows, heldout_rows)
        rest = (num_dropped, num_flagged, count_parameters(teacher), rollouts)
        return cls(config, snapshot, dataset, *rows, examination, student, *rest)

    @property
    def has_baseline(self) -> bool:
        """Whether behaviour cloning is tried beside it; not on what the student said itself."""
        wants = self.config.baseline and self.config.loss != "behaviour_cloning"
        return wants and self.rollouts is None

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

        Each appears whole or not at all; what an earlier run left is replaced at the end. One
        that was interrupted goes on from what ``progress/`` holds, to the same weights.

        Raises:
            DivergedError: If the loss is no number any more.
        """
        config, out = self.config, self.config.out
        looked_at, measured = divide(self.dataset, self.heldout_rows, config.eval_rows)
        every = config.eval_every or max(1, config.steps // LOOKS)
        training = Training(
            *(self.student, self.dataset, self.train_rows, looked_at),
            *(self.examination, self.recipe, every),
        )
        audience.say("measuring the student before training")
        before, start = self.examination.of(self.student, measured), weights_of(self.student)
        seen = self.examination.of(self.student, looked_at)
        guard = EntropyGuard.of(seen) if self.rollouts else None
        progress = Progress(out / "progress", self._identity())
        done, course = self._train(replace(training, guard=guard), progress, audience)
        best_step, stopped = course.take_best(self.student).step, None
        if guard is not None:
            best_step, stopped = guard.settle(course, self.student, start, config.steps)
        audience.say("measuring on held-out rows")
        finished = merged(self.student)
        round_weights(finished)  # as they will be saved
        after = self.examination.of(finished, measured)
        save_checkpoint(
            finished,
            config.teacher,
            out / "checkpoint",
            lineage=self._lineage(),
            quality=self._told(after),
        )
        with replacing(out / "tensorboard") as scalars:
            shutil.copytree(progress.tensorboard, scalars, dirs_exist_ok=True)
        baseline = None
        if self.has_baseline:
            audience.say("behaviour cloning, to compare")
            scratch = out / "progress" / "baseline"
            baseline = clone_behaviour(training, start, measured, done.seconds, scratch, audience)
        metrics = Metrics(
            loss=config.loss,
            metric=Path(config.metric).name,
            steps=config.steps,
            rows=len(self.train_rows),
            duplicates_dropped=self.num_dropped,
            flagged_rows=self.num_flagged,
            tokens=done.tokens,
            seconds=done.seconds,
            tokens_per_second=done.tokens / done.seconds,
            student_parameters=count_parameters(finished),
            teacher_parameters=self.teacher_parameters,
            heldout_before_training=before,
            heldout=after,
            best_step=best_step,
            points=course.points,
            baseline=baseline,
            rollouts=self.rollouts.model_dump(mode="json") if self.rollouts else None,
            stopped=stopped,
            snapshot=self.snapshot,
        )
        write_json(out / "metrics.json", {"format_version": METRICS_VERSION, **asdict(metrics)})
        write_report(asdict(metrics), out / "report.html")
        progress.remove()
        return metrics

    def _train(
        self, training: Training, progress: Progress, audience: Audience
    ) -> tuple[Done, Course]:
        optimizer = make_optimizer(self.student)
        done = progress.restore(self.student, optimizer)
        if done.steps:
            audience.say(f"going on after step {done.steps}")
        rank = training.guard.rank if training.guard else by_metric
        course = Course(self.config.out / "progress" / "course", done.steps, rank)
        return training.run(optimizer, course, done, audience.step, progress), course

    def _told(self, quality: Quality) -> dict[str, float]:
        """What the checkpoint says of itself; not how it compares with its own earlier answers."""
        told = {name: float(value) for name, value in asdict(quality).items()}
        if self.rollouts is not None:
            del told["exact_match"]
        return told

    def _identity(self) -> str:
        """What decides the weights, digested: data, student and recipe."""
        lineage = self._lineage().model_dump_json()
        threads = (self.config.threads, self.config.device)
        return hashlib.sha256(f"{lineage} {threads}".encode()).hexdigest()

    def _lineage(self) -> Lineage:
        config = self.config
        started_from = config.teacher if config.student is None else config.student
        recipe = config.model_dump(
            mode="json",
            exclude={"log", "teacher", "student", "out", "threads", "device", "baseline"},
        )
        recipe["metric"] = Path(config.metric).name  # of a user's file, not where it lies
        if self.rollouts is not None:
            recipe["rollouts"] = self.rollouts.model_dump(mode="json")
        return Lineage(
            snapshot=self.snapshot,
            teacher_revision=self.dataset.model_revision,
            parent_revision=model_revision(started_from),
            recipe=recipe,
        )


def _read(table: pa.Table, teacher: Path) -> tuple[Dataset, int]:
    """Rows to learn from, and how many of them are flagged: of those the tokens alone count."""
    dataset = from_table(table, teacher)
    if "flags" not in table.column_names:
        return dataset, 0
    is_flagged = np.asarray(answered(table)["flags"]) != 0
    return words_only(dataset, is_flagged), int(is_flagged.sum())


def _fitted(dataset: Dataset, student: PreTrainedModel) -> Dataset:
    """The rows in the student's vocabulary; refused if it has no position for one."""
    context, longest = student.config.max_position_embeddings, int(dataset.lengths.max())
    if longest > context:
        raise DatasetError(
            f"the longest example has {longest} tokens, the student takes {context}: leave long "
            "ones out with `where`, such as "
            f'where = "len(prompt_ids) + len(completion_ids) <= {context}"'
        )
    return fit_vocabulary(dataset, student.config.vocab_size)
