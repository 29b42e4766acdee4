"""One distillation: from rows of the log to a checkpoint and its measurements."""

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Self

import pyarrow as pa
import torch
from pydantic import JsonValue
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel

from capture.errors import ConfigError
from capture.revision import model_revision
from trainer.checkpoint import replacing, save_checkpoint, write_json
from trainer.config import TrainerConfig
from trainer.dataset import Dataset, Ints, from_table, split
from trainer.errors import DatasetError
from trainer.evaluation import Quality, evaluate
from trainer.loop import Recipe, Step, make_optimizer, train
from trainer.losses import LOSSES, mixed
from trainer.manifest import Lineage
from trainer.precision import in_fast_dtype
from trainer.progress import Done, Progress
from trainer.reduction import Reduction
from trainer.student import count_parameters, open_student, open_teacher

Snapshot = dict[str, JsonValue]
Report = Callable[[str], None]
OnStep = Callable[[Step], None]

METRICS_VERSION = 1
SCALARS_EVERY = 10  # steps between two points of a TensorBoard curve
SAVE_SECONDS = 60.0  # what an interrupted run loses at most


@dataclass(frozen=True, slots=True)
class Metrics:
    """The content of ``metrics.json``.

    Attributes:
        rows: Examples trained on; those held out are counted in ``heldout``.
        tokens: Run in training, padding included.
        seconds: Of training alone.
        heldout: Of the weights as they are saved, in bfloat16.
    """

    loss: str
    steps: int
    rows: int
    tokens: int
    seconds: float
    tokens_per_second: float
    student_parameters: int
    teacher_parameters: int
    heldout_before_training: Quality
    heldout: Quality
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Distillation:
    """A run, read and checked, whose first step may follow.

    Attributes:
        snapshot: Identity of the rows.
        train_rows: Examples to learn from.
        heldout_rows: Examples to measure on, of other prompts.
        student: Float32, on the run's device.
        teacher_parameters: For comparison.
    """

    config: TrainerConfig
    snapshot: Snapshot
    dataset: Dataset
    train_rows: Ints
    heldout_rows: Ints
    student: PreTrainedModel
    teacher_parameters: int

    @classmethod
    def prepare(
        cls, config: TrainerConfig, table: pa.Table, snapshot: Snapshot, report: Report
    ) -> Self:
        """Check the rows against the teacher and make the student to start from.

        Args:
            config: Of the run.
            table: Rows of the log's ``examples`` view, with ``trainer.dataset.COLUMNS``.
            snapshot: What names those rows again.
            report: Called with a few words before each slow part.

        Raises:
            TrainerError: If the rows or the models cannot be used.
            ConfigError: If the wanted cut cannot be had.
        """
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        device = _device(config.device)
        report("reading the teacher")
        teacher = open_teacher(config.teacher, device)
        dataset = from_table(table, config.teacher)
        if config.loss == "forward_kl_draws" and not len(dataset.tail_draws.values):
            raise DatasetError(
                "the log holds no ids drawn from the tail: capture with [capture] tail_draws = 4, "
                'or train with loss = "forward_kl"'
            )
        train_rows, heldout_rows = split(dataset, config.heldout_fraction)
        if config.student is not None:
            student = open_student(config.student, config.teacher, device)
        else:
            reduction = Reduction(teacher, dataset, train_rows, config.seed, report)
            student = reduction.run(config.cut)
        _check_fits(dataset, student)
        parameters = count_parameters(teacher)
        return cls(config, snapshot, dataset, train_rows, heldout_rows, student, parameters)

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

    def run(self, on_step: OnStep, report: Report) -> Metrics:
        """Train, measure, write ``checkpoint/``, ``tensorboard/`` and ``metrics.json``.

        Each appears whole or not at all; what an earlier run left is replaced at the end. One
        that was interrupted goes on from what ``progress/`` holds, to the same weights.
        """
        out = self.config.out
        progress = Progress(out / "progress", self._identity())
        report("measuring the student before training")
        before = self._measure()
        done = self._train(progress, on_step, report)
        report("measuring on held-out rows")
        in_fast_dtype(self.student.to(torch.bfloat16))  # rounded as it will be saved
        after = self._measure()
        metrics = Metrics(
            loss=self.config.loss,
            steps=self.config.steps,
            rows=len(self.train_rows),
            tokens=done.tokens,
            seconds=done.seconds,
            tokens_per_second=done.tokens / done.seconds,
            student_parameters=count_parameters(self.student),
            teacher_parameters=self.teacher_parameters,
            heldout_before_training=before,
            heldout=after,
            snapshot=self.snapshot,
        )
        quality = {name: float(value) for name, value in asdict(after).items()}
        save_checkpoint(
            self.student,
            self.config.teacher,
            out / "checkpoint",
            lineage=self._lineage(),
            quality=quality,
        )
        with replacing(out / "tensorboard") as scalars:
            shutil.copytree(progress.tensorboard, scalars, dirs_exist_ok=True)
        write_json(out / "metrics.json", {"format_version": METRICS_VERSION, **asdict(metrics)})
        progress.remove()
        return metrics

    def _train(self, progress: Progress, on_step: OnStep, report: Report) -> Done:
        optimizer = make_optimizer(self.student)
        done = progress.restore(self.student, optimizer)
        if done.steps:
            report(f"going on after step {done.steps}")
        started = time.perf_counter() - done.seconds
        saved_at = time.monotonic()
        steps = train(
            *(self.student, optimizer, self.dataset, self.train_rows, self.recipe), done.steps
        )
        with SummaryWriter(str(progress.tensorboard), purge_step=done.steps + 1) as board:
            for step in steps:
                tokens, seconds = done.tokens + step.tokens, time.perf_counter() - started
                done = Done(step.number, tokens, seconds)
                on_step(step)
                if step.number % SCALARS_EVERY == 0 or step.number == self.config.steps:
                    board.add_scalar("train/loss_nats", step.loss, step.number)
                    board.add_scalar("train/grad_norm", step.grad_norm, step.number)
                    board.add_scalar("train/learning_rate", step.learning_rate, step.number)
                    board.add_scalar("train/tokens", tokens, step.number)
                if time.monotonic() - saved_at >= SAVE_SECONDS:
                    board.flush()
                    progress.save(self.student, optimizer, done)
                    saved_at = time.monotonic()
        return done

    def _identity(self) -> str:
        """What decides the weights, digested: data, student and recipe."""
        lineage = self._lineage().model_dump_json()
        threads = (self.config.threads, self.config.device)
        return hashlib.sha256(f"{lineage} {threads}".encode()).hexdigest()

    def _measure(self) -> Quality:
        return evaluate(self.student, self.dataset, self.heldout_rows, 4 * self.config.batch_tokens)

    def _lineage(self) -> Lineage:
        config = self.config
        started_from = config.teacher if config.student is None else config.student
        recipe = config.model_dump(
            mode="json", exclude={"log", "teacher", "student", "out", "threads", "device"}
        )
        return Lineage(
            snapshot=self.snapshot,
            teacher_revision=self.dataset.model_revision,
            parent_revision=model_revision(started_from),
            recipe=recipe,
        )


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("[trainer] device is 'cuda', but torch finds none; use 'cpu'")
    return torch.device(name)


def _check_fits(dataset: Dataset, student: PreTrainedModel) -> None:
    """Refuse rows that the student has no position or no embedding for."""
    context, longest = student.config.max_position_embeddings, int(dataset.lengths.max())
    if longest > context:
        raise DatasetError(
            f"the longest example has {longest} tokens, the student takes {context}: leave long "
            "ones out with `where`, such as "
            f'where = "len(prompt_ids) + len(completion_ids) <= {context}"'
        )
    columns = (dataset.prompt_ids, dataset.completion_ids, dataset.topk_ids)
    largest = max(int(column.values.max()) for column in columns)
    if largest >= student.config.vocab_size:
        raise DatasetError(
            f"the log holds token id {largest}, the student's vocabulary ends at "
            f"{student.config.vocab_size - 1}: choose a student with the teacher's vocabulary"
        )
