"""Tokens per second of ``retort distill``'s loop beside TRL's trainers: same student, same batches.

Every side trains on rows that were captured from the teacher, in the very batches that our loop
makes of them, on forward KL, with AdamW at the same rate, in float32 (bfloat16 where the CPU has
it) and on all cores. Each round runs every side once, in a process of its own. The sides differ
in what they read of the teacher: we read what was logged of its distribution, TRL runs the
teacher in every step. That is the point.

TRL 1.16 has two trainers for this; the ratio is that over the faster one:

* ``gkd``: ``GKDTrainer`` with ``lmbda = 0``, the one that trains on given answers.
* ``distillation``: the stable ``DistillationTrainer``, whose loss never holds all scores. It only
  trains on answers that it generates; here it is handed the logged ones, so that the seconds
  which generating takes do not count.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from tests.bench.distill.arms import cut_to, some
from tests.bench.distill.jobs import BATCH_TOKENS, CPU, LEARNING_RATE, Place, by_prompt
from tests.bench.distill.wide import VOCABULARY, widen
from trainer.dataset import Dataset, Ints
from trainer.learner import MAX_GRAD_NORM, Learner
from trainer.loop import BETAS, WEIGHT_DECAY, Recipe, make_optimizer, train
from trainer.losses import LOSSES
from trainer.packing import endless_batches
from trainer.precision import has_bfloat16
from trainer.student import open_teacher

TRL = "trl==1.16.0"
OURS, PEERS = "retort", ("gkd", "distillation")
NUM_PROMPTS = 250
ROUNDS, STEPS, WARMING = 3, 12, 2
SEED = 0
TIMEOUT_SECONDS = 900.0
WORKER = Path(__file__).with_name("trl_worker.py")
Rounds = Mapping[str, Sequence[float]]


class PeerError(Exception):
    """Raised when TRL cannot be installed, or ends with an error."""


def beside_trl(place: Place, tools: Path, bar: Progress) -> dict[str, Any]:
    """Measure, and return what the document says of it; where TRL does not run, why.

    Args:
        place: With the rows and the student.
        tools: The folder in which TRL has an environment of its own; made if it is not there.
        bar: Where progress is shown.
    """
    try:
        python = installed(tools / "trl", bar)
        return compare(place, python, bar)
    except PeerError as error:
        bar.console.print(f"not measured beside TRL: {error}")
        return {"trl_speed_ratio": None, "trl_error": str(error)}


def installed(folder: Path, bar: Progress) -> Path:
    """Return the interpreter of an environment with TRL, our PyTorch and our transformers.

    Raises:
        PeerError: If it cannot be made.
    """
    wanted = [TRL, *(f"{name}=={version(name)}" for name in ("torch", "transformers"))]
    python, stamp = folder.absolute() / "bin/python", folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8").split() != wanted:
        bar.console.print(f"installing {TRL} into {folder}")
        wheels = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")
        backend = [] if wheels.strip() else ["--torch-backend", "cpu"]
        uv = Path(sys.executable).with_name("uv")
        install: list[str | Path] = ["pip", "install", "--quiet", "--python", python, *backend]
        finish([sys.executable, "-m", "venv", "--clear", folder])
        finish([uv, *install, *wanted], UV_FIND_LINKS=wheels)
        stamp.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return python


def finish(command: Sequence[str | Path], **environment: str) -> None:
    """Run a command to its end.

    Raises:
        PeerError: If it fails or takes too long; with the end of what it said.
    """
    given = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    try:
        subprocess.run(
            [str(part) for part in command],
            check=True,
            capture_output=True,
            text=True,
            env=given,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        said = str(error.stderr).strip()[-400:]
        raise PeerError(f"{Path(command[0]).name} ended with {error.returncode}: {said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(str(error)) from error


def compare(place: Place, python: Path, bar: Progress) -> dict[str, Any]:
    """Take turns with TRL.

    Raises:
        PeerError: If TRL does not run.
    """
    home, dataset = place.home / "trl", given(place)
    settings = write_task(place, dataset, home)
    batches = taken(dataset)
    rounds: dict[str, list[float]] = {name: [] for name in (OURS, *PEERS)}
    task = bar.add_task("beside TRL", total=ROUNDS * len(rounds))
    versions: dict[str, str] = {}
    for turn in range(ROUNDS):
        for name in rounds if turn % 2 else reversed(rounds):
            if name == OURS:
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    ended = pool.submit(ours, place, settings["threads"]).result()
            else:
                finish([python, "-I", WORKER, name, home])
                said = json.loads((home / f"{name}.json").read_text(encoding="utf-8"))
                ended, versions = said["ended_seconds"], said["versions"]
            rounds[name].append(tokens_per_second(ended, batches, dataset.lengths))
            bar.advance(task)
    return outcome(rounds, {"versions": versions, **settings})


def given(place: Place) -> Dataset:
    """Rows with as many entries as are captured by default."""
    dataset = place.rows("top64")
    return cut_to(some(dataset, by_prompt(dataset)[:NUM_PROMPTS]), "adaptive")


def taken(dataset: Dataset) -> list[Ints]:
    """Which rows each step trains on."""
    return list(islice(endless_batches(dataset.lengths, BATCH_TOKENS, SEED), STEPS))


def write_task(place: Place, dataset: Dataset, home: Path) -> dict[str, Any]:
    """Write the wide models and what the worker reads; return what is the same on all sides."""
    home.mkdir()
    teacher = open_teacher(place.teacher, CPU)
    vocabulary = max(VOCABULARY, teacher.config.vocab_size)
    for name, model in {"student": place.start(), "teacher": teacher}.items():
        widen(model, vocabulary)
        model.save_pretrained(home / name)
    settings = {
        "vocabulary": vocabulary,
        "is_bfloat16": has_bfloat16(CPU),
        "threads": len(os.sched_getaffinity(0)),
        "batch_tokens": BATCH_TOKENS,
        "steps": STEPS,
        "warming_steps": WARMING,
        "learning_rate": LEARNING_RATE,
    }
    columns = (dataset.prompt_ids, dataset.completion_ids)
    pairs = [
        [[column.row(row).tolist() for column in columns] for row in rows]
        for rows in taken(dataset)
    ]
    task = {
        "tokenizer": str(place.teacher),
        "batches": pairs,
        "betas": BETAS,
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        **settings,
    }
    (home / "task.json").write_text(json.dumps(task), encoding="utf-8")
    return settings


def ours(place: Place, threads: int) -> list[float]:
    """When each step of our loop ended, on a clock of its own."""
    torch.set_num_threads(threads)
    disable_progress_bar()  # it would tear our own
    folder, dataset = place.home / "trl" / "student", given(place)
    student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    recipe = Recipe(LOSSES["forward_kl"], STEPS, BATCH_TOKENS, LEARNING_RATE, 0, SEED)
    learner = Learner(student, make_optimizer(student))
    steps = train(learner, dataset, np.arange(len(dataset)), recipe)
    return [time.perf_counter() for _ in steps]


def tokens_per_second(ended: Sequence[float], batches: Sequence[Ints], lengths: Ints) -> float:
    """Tokens of prompts and answers, without padding, over the seconds after warming up.

    Args:
        ended: When each step ended, seconds.
        batches: The rows of each step.
        lengths: Tokens of each row.
    """
    tokens = sum(int(lengths[rows].sum()) for rows in batches[WARMING:])
    return tokens / (ended[-1] - ended[WARMING - 1])


def outcome(rounds: Rounds, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the document says: our median over that of TRL's faster trainer, and the rounds."""
    medians = {name: statistics.median(rates) for name, rates in rounds.items()}
    over = {name: medians[OURS] / medians[name] for name in PEERS}
    return {
        "trl_speed_ratio": min(over.values()),
        "trl_error": None,
        "trl": {**settings, "ratio_over": over, "tokens_per_second": dict(rounds)},
    }
