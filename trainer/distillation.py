"""One distillation: from rows of the log to a checkpoint and its measurements."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from capture.log import Snapshot as LogSnapshot
from capture.revision import model_revision, tokenizer_hash
from trainer.adapters import add_adapters, merged
from trainer.baseline import clone_behaviour, follow_cloning
from trainer.begun import Begun
from trainer.checkpoint import save_checkpoint, write_json
from trainer.config import TrainerConfig
from trainer.course import Course, Point, by_metric, divide
from trainer.dataset import Ints
from trainer.evaluation import Quality
from trainer.examination import Examination
from trainer.fake import fake_quantize, grid_of
from trainer.guard import EntropyGuard
from trainer.loop import Recipe
from trainer.losses import LOSSES, mixed
from trainer.manifest import Lineage, chat_template_hash
from trainer.material import Material
from trainer.metrics import LM_EVAL
from trainer.precision import open_device, round_weights
from trainer.progress import Done, Progress
from trainer.report import write_report
from trainer.results import METRICS_VERSION, Metrics, Snapshot
from trainer.rollouts import Rollouts, read_rollouts
from trainer.scale import ALONE, Group, handed_on
from trainer.start import make_student
from trainer.student import count_parameters, tokenizer_folder, weights_of
from trainer.task import open_task
from trainer.tracking import opened
from trainer.training import Audience, Training

Report = Callable[[str], None]

LOOKS = 10  # at held-out rows, unless told otherwise
WHERE = {"log", "teacher", "student", "out", "threads", "device", "scale"}
BESIDE_RECIPE = {*WHERE, "baseline", "trackers"}  # settings that decide no weight


class Kept(NamedTuple):
    """Which weights were kept, and why.

    Attributes:
        step: After which they were; 0 for those the run began with.
        points: Looks at held-out rows.
        stopped: Why the run ended early; None if it did not.
    """

    step: int
    points: list[Point]
    stopped: str | None


@dataclass(frozen=True, slots=True)
class Distillation:
    """A run, read and checked, whose first step may follow.

    Attributes:
        snapshot: Identity of the rows.
        material: To learn from and to measure on.
        examination: What held-out rows are measured with.
        student: Float32, on the run's device.
        teacher_parameters: For comparison.
        rollouts: Whose answers the rows are, if they are a student's.
        group: Of the processes that train the student together.
    """

    config: TrainerConfig
    snapshot: Snapshot
    material: Material
    examination: Examination
    student: PreTrainedModel
    teacher_parameters: int
    rollouts: Rollouts | None = None
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
            table: Rows as ``Material.read`` takes them.
            snapshot: What names those rows again.
            report: Called with a few words before each slow part.
            group: Whose first process makes the student, for all.

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
        material = Material.read(config, table, report)
        task = open_task(config.metric, tokenizer_folder(config), config.eval_rows)
        make = partial(make_student, config, material, report)
        student, teacher_parameters = handed_on(group, make, device)
        if config.lora_rank is not None:
            add_adapters(student, config.lora_rank, config.seed)
        if config.fake_quantize is not None:
            fake_quantize(student, config.fake_quantize)
        material = material.fitted(student)
        examination = Examination(material.dataset, 4 * config.batch_tokens, task, config.eval_rows)
        made = (student, teacher_parameters)
        return cls(config, snapshot, material, examination, *made, rollouts, group)

    @property
    def has_baseline(self) -> bool:
        """Whether behaviour cloning is tried beside it; not on what the student said itself."""
        wants = self.config.baseline and self.config.loss != "behaviour_cloning"
        return wants and self.rollouts is None

    @property
    def num_dropped(self) -> int:
        """Rows of the snapshot that are not there, being duplicates."""
        return int(str(self.snapshot["num_rows"])) - len(self.material.dataset)

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
            config.sure_share,
        )

    def run(self, audience: Audience) -> Metrics:
        """Train, measure, write the checkpoint, curves, ``metrics.json`` and ``report.html``.

        In a group this is the first process's part; the others ``follow``.

        Each appears whole or not at all, at the very end, so that a run that was interrupted, be it
        in its baseline, goes on from the same student and ``progress/`` to the same weights.

        Raises:
            DivergedError: If the loss is no number any more.
        """
        config, out = self.config, self.config.out
        training, measured = self._training()
        audience.say("measuring the student before training")
        before, start = self.examination.of(self.student, measured), weights_of(self.student)
        progress = Progress(out / "progress", self._identity())
        done, kept = self._train(training, start, progress, audience)
        audience.say("measuring on held-out rows")
        finished = merged(self.student)
        round_weights(finished)  # as they will be saved
        after = self.examination.of(finished, measured)
        self._save(finished, after, progress)
        baseline = None
        if self.has_baseline:
            audience.say("behaviour cloning, to compare")
            seconds, scratch = done.seconds, out / "progress" / "baseline"
            with progress.published_if_diverged(out):
                baseline = clone_behaviour(training, start, measured, seconds, scratch, audience)
        metrics = Metrics(
            loss=config.loss,
            metric=_name(config.metric),
            steps=config.steps,
            rows=len(self.material.train_rows),
            duplicates_dropped=self.num_dropped,
            flagged_rows=self.material.num_flagged,
            tokens=done.tokens,
            seconds=done.seconds,
            tokens_per_second=done.tokens / done.seconds,
            student_parameters=count_parameters(finished),
            teacher_parameters=self.teacher_parameters,
            heldout_before_training=before,
            heldout=after,
            best_step=kept.step,
            points=kept.points,
            baseline=baseline,
            rollouts=self.rollouts.model_dump(mode="json") if self.rollouts else None,
            retokenized=self.material.retokenized,
            stopped=kept.stopped,
            snapshot=self.snapshot,
        )
        progress.publish(out)
        write_json(out / "metrics.json", {"format_version": METRICS_VERSION, **asdict(metrics)})
        write_report(asdict(metrics), out / "report.html")
        progress.remove()
        return metrics

    def _save(self, finished: PreTrainedModel, quality: Quality, progress: Progress) -> None:
        """Write the checkpoint, to be put in place when the run has ended."""
        lineage, told = self._lineage(), self._told(quality)
        companions = tokenizer_folder(self.config)
        save_checkpoint(finished, companions, progress.checkpoint, lineage=lineage, quality=told)

    def follow(self) -> None:
        """Take another process's part in what the first one runs, and write nothing.

        Raises:
            DivergedError: As the first one does.
        """
        training, _ = self._training()
        start, learner = weights_of(self.student), training.learner()
        training.follow(learner, learner.restore(None))
        if self.has_baseline:
            follow_cloning(training, start)

    def _training(self) -> tuple[Training, Ints]:
        """What to train on what, and the held-out rows to measure on."""
        config, material = self.config, self.material
        looked_at, measured = divide(material.dataset, material.heldout_rows, config.eval_rows)
        every = config.eval_every or max(1, config.steps // LOOKS)
        training = Training(
            *(self.student, material.dataset, material.train_rows, looked_at),
            *(self.examination, self.recipe, every),
            group=self.group,
        )
        return training, measured

    def _train(
        self, training: Training, start: dict[str, Tensor], progress: Progress, audience: Audience
    ) -> tuple[Done, Kept]:
        """Train on from what is saved, and give the student the weights that are kept."""
        guard = None
        if self.rollouts is not None:
            guard = EntropyGuard.of(self.examination.of(self.student, training.looked_at))
        learner = training.learner()
        done = learner.restore(progress)
        if done.steps:
            audience.say(f"going on after step {done.steps}")
        Begun.of(self.config, LogSnapshot.model_validate(self.snapshot)).write(self.config)
        choice = guard.choice if guard else by_metric
        course = Course(self.config.out / "progress" / "course", done.steps, choice)
        with opened(self.config, self._lineage()) as trackers:
            followed = replace(training, guard=guard, trackers=trackers)
            done = followed.run(learner, course, done, audience.step, progress)
        step, stopped = course.take_best(self.student).step, None
        if guard is not None:
            step, stopped = guard.settle(course, self.student, start, self.config.steps)
        return done, Kept(step, course.points, stopped)

    def _told(self, quality: Quality) -> dict[str, float]:
        """What the checkpoint says of itself; not how it compares with its own earlier answers."""
        told = {name: float(value) for name, value in asdict(quality).items() if value is not None}
        if self.rollouts is not None:
            for name in ("exact_match", "metric", "metric_rows"):
                del told[name]
        return told

    def _identity(self) -> str:
        """What decides the weights, digested: data, student and recipe."""
        lineage = self._lineage().model_dump_json()
        threads = (self.config.threads, self.config.device)
        return hashlib.sha256(f"{lineage} {threads}".encode()).hexdigest()

    def _lineage(self) -> Lineage:
        config = self.config
        started_from = config.teacher if config.student is None else config.student
        recipe = config.model_dump(mode="json", exclude=BESIDE_RECIPE)
        recipe["metric"] = _name(config.metric)
        if config.fake_quantize is not None:
            recipe["fake_quantize_grid"] = asdict(grid_of(self.student, config.fake_quantize))
        if self.material.retokenized is not None:
            recipe["student_tokenizer"] = tokenizer_hash(started_from)
            recipe["student_chat_template"] = chat_template_hash(started_from)
        if self.rollouts is not None:
            recipe["rollouts"] = self.rollouts.model_dump(mode="json")
        return Lineage(
            snapshot=self.snapshot,
            teacher_revision=self.material.dataset.model_revision,
            parent_revision=model_revision(started_from),
            recipe=recipe,
        )


def _name(metric: str) -> str:
    """Of a metric; of a user's file, not where it lies."""
    prefix = LM_EVAL if metric.startswith(LM_EVAL) else ""
    return prefix + Path(metric).name
