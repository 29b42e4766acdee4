"""Rollouts: a student answers prompts of the log, its teacher scores every token of the answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from capture.errors import ConfigError
from capture.log import Log, Snapshot
from capture.revision import model_revision
from trainer.answering import Answer, Answerer, Sampling
from trainer.config import TrainerConfig
from trainer.dataset import COLUMNS, Dataset, Ints, from_table, split
from trainer.errors import ModelError
from trainer.rollout_log import Origin, RolloutLog
from trainer.rollouts import Rollouts, read_rollouts
from trainer.scoring import Scorer

PROMPTS_AT_ONCE = 32
HELDOUT_AT_LEAST = 32  # prompts, if there are so many; fewer measure nothing
CHECKED_ROWS = 8
SAME_TEACHER = 0.8  # share of likeliest tokens; rounding alone changes a few
OF_EXCHANGE = ("route", "request")


@dataclass(frozen=True, slots=True)
class Asked:
    """Prompts of a log's snapshot, those to learn from and those held out.

    Attributes:
        dataset: Every example of the snapshot.
        origins: Its rows' exchanges.
        train_rows: Rows with prompts to learn from, each prompt once, in random order.
        heldout_rows: Likewise of those held out.
    """

    dataset: Dataset
    origins: list[Origin]
    train_rows: Ints
    heldout_rows: Ints

    @classmethod
    def read(cls, config: TrainerConfig, snapshot: Snapshot) -> "Asked":
        """Read a snapshot and divide its prompts as every run on it does.

        Raises:
            TrainerError: If the rows cannot be used.
        """
        table = Log(config.log).read(snapshot, (*COLUMNS, *OF_EXCHANGE))
        dataset = from_table(table, config.teacher)  # keeps every row: examples have answers
        sides = split(dataset, config.heldout_fraction)
        rows = (_each_once(dataset, side, config.seed) for side in sides)
        return cls(dataset, _origins(table), *rows)

    def chosen(self, num_prompts: int | None) -> Ints:
        """Rows of some prompts to learn from, all by default, and of as large a share held out."""
        if num_prompts is None or num_prompts >= len(self.train_rows):
            return np.concatenate([self.train_rows, self.heldout_rows])
        share = num_prompts / len(self.train_rows)
        num_heldout = max(HELDOUT_AT_LEAST, round(share * len(self.heldout_rows)))
        return np.concatenate([self.train_rows[:num_prompts], self.heldout_rows[:num_heldout]])


def take_folder(folder: Path, wanted: Rollouts) -> None:
    """Make a folder for rollouts, or go on in one that was made for the same.

    Raises:
        ConfigError: If it holds something else.
    """
    found = read_rollouts(folder)
    if found is None:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and holds no rollouts: choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        wanted.write(folder)
        return
    ours, theirs = wanted.model_dump(), found.model_dump()
    other = [
        f"{name} {theirs[name]}, not {ours[name]}" for name in ours if ours[name] != theirs[name]
    ]
    if other:
        raise ConfigError(
            f"{folder} holds other rollouts ({'; '.join(other)}): choose another folder"
        )


def snapshot_of(config: TrainerConfig, folder: Path) -> Snapshot:
    """The snapshot whose prompts are asked: a folder's own, if it was begun for the same filter."""
    found = read_rollouts(folder)
    if found is not None:
        before = found.snapshot
        if before.where == config.where and before.log == config.log.resolve():
            return before
    return Log(config.log).snapshot(config.where)


def wanted_rollouts(
    config: TrainerConfig, student: Path, asked: Asked, snapshot: Snapshot, sampling: Sampling
) -> Rollouts:
    """What decides the rows."""
    return Rollouts(
        student_revision=model_revision(student),
        teacher_revision=asked.dataset.model_revision,
        snapshot=snapshot,
        heldout_fraction=config.heldout_fraction,
        temperature=sampling.temperature,
        max_new_tokens=sampling.max_new_tokens,
    )


def check_teacher(asked: Asked, scorer: Scorer) -> None:
    """See that it is the teacher of the log who scores.

    Raises:
        ModelError: If its likeliest tokens are not those that were logged.
    """
    dataset, rows = asked.dataset, asked.train_rows[:CHECKED_ROWS]
    answers = [
        Answer(
            dataset.prompt_ids.row(row).astype(np.int32),
            dataset.completion_ids.row(row).astype(np.int32),
            "stop",
        )
        for row in rows
    ]
    found = np.concatenate([scores.likeliest for scores in scorer(answers)])
    starts = [dataset.topk_size.row(row).astype(np.int64) for row in rows]
    logged = np.concatenate(
        [
            dataset.topk_ids.row(row)[np.cumsum(sizes) - sizes]
            for row, sizes in zip(rows, starts, strict=True)
        ]
    )
    same = float((found == logged).mean())
    if same < SAME_TEACHER:
        raise ModelError(
            f"the teacher agrees with {same:.0%} of the logged likeliest tokens, expected "
            f"{SAME_TEACHER:.0%}: it is not the model that answered "
            f"({dataset.model_revision}); give that one"
        )


@dataclass(frozen=True, slots=True)
class Crew:
    """Who does the work.

    Attributes:
        answer: The student.
        score: The teacher.
        spell: Texts of token ids.
    """

    answer: Answerer
    score: Scorer
    spell: Callable[[Sequence[list[int]]], list[str]]


def roll_out(
    asked: Asked, rows: Ints, crew: Crew, log: RolloutLog, on_rows: Callable[[int], None]
) -> tuple[int, int]:
    """Answer, score and add what the log does not hold yet, the longest prompts first.

    Args:
        asked: Prompts.
        rows: Of them, to be asked.
        crew: Who answers and scores.
        log: Takes the rows, some at a time; what it took is kept whatever comes after.
        on_rows: Told of rows as they are done, those that were there already at first.

    Returns:
        Rows and completion tokens that were added.
    """
    prompts = {int(row): asked.dataset.prompt_ids.row(row).astype(np.int32) for row in rows}
    known = log.answered()
    todo = [row for row, prompt in prompts.items() if prompt.tobytes() not in known]
    todo.sort(key=lambda row: -len(prompts[row]))
    on_rows(len(prompts) - len(todo))
    num_tokens = 0
    for start in range(0, len(todo), PROMPTS_AT_ONCE):
        part = todo[start : start + PROMPTS_AT_ONCE]
        answers = crew.answer([prompts[row] for row in part])
        scores = crew.score(answers)
        texts = crew.spell([answer.completion_ids.tolist() for answer in answers])
        log.add([asked.origins[row] for row in part], answers, texts, scores)
        num_tokens += sum(len(answer.completion_ids) for answer in answers)
        on_rows(len(part))
    return len(todo), num_tokens


def _each_once(dataset: Dataset, rows: Ints, seed: int) -> Ints:
    """The first row of each prompt, in random order."""
    first = {dataset.prompt_ids.row(row).tobytes(): row for row in reversed(rows)}
    found = np.sort(np.array(list(first.values()), dtype=np.int64))
    return np.random.default_rng(seed).permutation(found)


def _origins(table: pa.Table) -> list[Origin]:
    columns = (table[name].to_pylist() for name in ("exchange_id", *OF_EXCHANGE))
    return [Origin(*row) for row in zip(*columns, strict=True)]
