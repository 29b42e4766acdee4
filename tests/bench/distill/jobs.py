"""One student trained one way, in a process of its own, and measured on what it never saw."""

import hashlib
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.bench.distill.arms import ARMS, cut_to, draw_fewer, some, with_everything
from trainer.dataset import Dataset, Ints, from_table
from trainer.evaluation import evaluate
from trainer.fused import fused_loss
from trainer.learner import Learner
from trainer.loop import Recipe, make_optimizer, train
from trainer.losses import LOSSES
from trainer.packing import collate
from trainer.student import completion_hidden, open_teacher

LEARNING_RATE, BATCH_TOKENS, WARMUP = 1e-3, 512, 30
NUM_COMPARED = 64  # answers of the first gradient
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything lies that a job reads.

    Attributes:
        teacher: Its folder.
        home: ``top64.parquet`` and ``draws16.parquet`` (what the tap kept of the traffic),
            ``heldout.parquet``, ``gold.parquet``, and ``start``, the student's folder.
    """

    teacher: Path
    home: Path

    def rows(self, name: str) -> Dataset:
        """Read one of the tables."""
        return from_table(pq.read_table(self.home / f"{name}.parquet"), self.teacher)

    def start(self) -> PreTrainedModel:
        """The student before its first step."""
        return AutoModelForCausalLM.from_pretrained(self.home / "start", dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class Job:
    """One run.

    Attributes:
        equal: What it has in common with the runs that it is compared with.
    """

    arm: str
    prompts: int
    seed: int
    steps: int
    equal: Literal["steps", "seconds"]


@dataclass(frozen=True, slots=True)
class Row:
    """What came of it.

    Attributes:
        seconds: Of training alone, on one core: what others did there does not count.
        kl_nats: KL(teacher || student) over the whole vocabulary, per token of the teacher's
            answers to held-out prompts.
        metric: Share of held-out prompts that it answers right to the letter.
        ece: Expected calibration error on the teacher's answers.
        gradient_cosine: Of its first gradient to that of the whole distribution.
    """

    task: str
    arm: str
    loss: str
    k: str
    prompts: int
    seed: int
    steps: int
    equal: str
    seconds: float
    kl_nats: float
    metric: float
    ece: float
    gradient_cosine: float


def by_prompt(dataset: Dataset) -> Ints:
    """Row numbers in an order that depends on the prompts alone: the first n are some n of them."""
    digests = [
        hashlib.sha256(np.asarray(dataset.prompt_ids.row(row), dtype="<i4").tobytes()).hexdigest()
        for row in range(len(dataset))
    ]
    return np.argsort(digests, kind="stable")


def run(job: Job, place: Place, task: str) -> dict[str, Any]:
    """Train and measure."""
    torch.set_num_threads(1)
    arm = ARMS[job.arm]
    dataset = given(place, job.arm, job.prompts)
    student = place.start()
    cosine = gradient_cosine(student, dataset, whole(place, NUM_COMPARED), job.arm)
    loss = LOSSES[arm.loss]
    recipe = Recipe(loss, job.steps, BATCH_TOKENS, LEARNING_RATE, WARMUP, job.seed)
    began = time.process_time()
    learner = Learner(student, make_optimizer(student))
    for _ in train(learner, dataset, np.arange(len(dataset)), recipe):
        pass
    seconds = time.process_time() - began
    heldout, gold = everything(place, "heldout"), place.rows("gold")
    quality = evaluate(student, heldout, np.arange(len(heldout)), 2048)
    right = evaluate(student, gold, np.arange(len(gold)), 2048).exact_match
    row = Row(
        *(task, job.arm, arm.loss, arm.k, job.prompts, job.seed, job.steps, job.equal, seconds),
        quality.distance_nats,
        right,
        quality.ece,
        cosine,
    )
    return asdict(row)


def given(place: Place, name: str, prompts: int) -> Dataset:
    """What an arm learns from."""
    arm = ARMS[name]
    if arm.data == "full":
        return whole(place, prompts)
    dataset = place.rows(arm.data)
    chosen = some(dataset, by_prompt(dataset)[:prompts])
    return cut_to(draw_fewer(chosen, arm.draws), arm.k)


@cache
def whole(place: Place, prompts: int) -> Dataset:
    """The same answers with the whole distribution."""
    dataset = place.rows("top64")
    chosen = some(dataset, by_prompt(dataset)[:prompts])
    return with_everything(chosen, open_teacher(place.teacher, CPU))


@cache
def everything(place: Place, name: str) -> Dataset:
    """A table with the whole distribution at every position."""
    return with_everything(place.rows(name), open_teacher(place.teacher, CPU))


def gradient_cosine(student: PreTrainedModel, data: Dataset, full: Dataset, arm: str) -> float:
    """Between the first gradient of an arm and that of the whole distribution, same answers."""
    rows = np.arange(min(NUM_COMPARED, len(data)))
    losses = (ARMS[arm].loss, "forward_kl")
    one, other = (
        _gradient(student, dataset, rows, name)
        for dataset, name in zip((data, full), losses, strict=True)
    )
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def _gradient(student: PreTrainedModel, dataset: Dataset, rows: Ints, loss: str) -> torch.Tensor:
    batch = collate(dataset, rows, CPU)
    hidden_ND = completion_hidden(student, batch)
    share_N = hidden_ND.new_full((len(hidden_ND),), 1 / len(hidden_ND))
    value = fused_loss(hidden_ND, student.lm_head.weight, batch.targets, LOSSES[loss], share_N)
    parameters = list(student.parameters())
    gradients = torch.autograd.grad(value, parameters)
    return torch.cat([gradient.flatten() for gradient in gradients])
