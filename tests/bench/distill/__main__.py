"""What the distribution is worth: students that learn from more or less of it, on real data.

``make bench-distill [DATA=folder TEACHER=folder]`` captures the teacher's answers to prompts in
vLLM through the tap, cuts one student from it, trains that student each way, and measures all on
held-out prompts, and then the loop's speed beside TRL's. Writes ``bench/distill.json`` and prints
the tables. ``FULL=1``: three seeds, the two that are compared with all prompts too, and all arms
once more for as many seconds as behaviour cloning takes.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import AutoTokenizer

from capture.revision import tokenizer_hash
from gateway.demo.prompts import Prompt, load_prompts
from tests.bench.distill.arms import ARMS, some
from tests.bench.distill.harvest import Kept, harvest
from tests.bench.distill.jobs import CPU, Job, Place, Row, by_prompt, run
from tests.bench.distill.trl import beside_trl
from tests.bench.models import demo_teacher
from trainer.config import CutConfig
from trainer.dataset import Dataset
from trainer.reduction import Reduction
from trainer.student import open_teacher

SIZES = (250, 500, 1000, 2000)
COMPARED = ("bc", "bucket_adaptive")  # at every number of prompts
CLOSING = ("bucket_k16", "draws4_k16", "draws_k16", "renorm_k12")  # whose share of the gap is told
SEEDS = {False: 1, True: 3}  # of a full run
NUM_HELDOUT = 400
console = Console(stderr=True)
Rows = Sequence[dict[str, Any]]


def main() -> int:
    """Capture, train, measure, write."""
    options = read_options()
    traffic, test = chosen_prompts(options.data, None if options.full else max(SIZES), options.seed)
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as folder, progress() as bar:
        place = Place(options.teacher.resolve(), Path(folder))
        prepare(place, traffic, test, bar)
        sizes = {*SIZES, len(traffic)} if options.full else {*SIZES}
        rows = train_all(place, options, sizes, bar)
        speed = beside_trl(place, options.out / "peers", bar)
    document = {
        "task": options.data.name,
        "rows": rows,
        "gap_closed": {name: gap_closed(rows, name) for name in CLOSING},
        "gap_closed_in_equal_seconds": {
            name: gap_closed(rows, name, "seconds") for name in CLOSING if options.full
        },
        **prompts_ratio(rows),
        **speed,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "distill.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    show(document, rows)
    console.print(path)
    return 0


def read_options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="train.jsonl and test.jsonl; default: the demo's")
    parser.add_argument("--teacher", type=Path, help="a Hugging Face folder; default: the demo's")
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="where the demo's are")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--full", action="store_true", help="the whole table, more than an hour")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="which prompts are asked")
    options = parser.parse_args()
    if (options.data is None) != (options.teacher is None):
        parser.error("--data and --teacher go together: a teacher needs prompts to answer")
    if options.data is None:
        options.data, options.teacher = options.demo / "cache", demo_teacher(options.demo)
    return options


def chosen_prompts(data: Path, number: int | None, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts of the traffic, each once, and held-out ones with their right answers."""
    order = np.random.default_rng(seed).permutation
    named = [data / name for name in ("train.jsonl", "prompts.jsonl")]
    path = next((path for path in named if path.is_file()), named[0])
    asked = {prompt.messages: prompt for prompt in load_prompts(path)}
    traffic = list(asked.values())
    test = [p for p in load_prompts(data / "test.jsonl") if p.messages not in asked]
    return (
        [traffic[place] for place in order(len(traffic))[:number]],
        [test[place] for place in order(len(test))[:NUM_HELDOUT]],
    )


def prepare(place: Place, traffic: list[Prompt], test: list[Prompt], bar: Progress) -> None:
    """Capture both logs, tell held-out answers from the rest, and cut the student."""
    kinds = {"top64": Kept(64, 0), "draws16": Kept(16, 16)}
    with ThreadPoolExecutor(len(kinds)) as pool:
        harvests = {
            name: pool.submit(
                harvest, place.teacher, [*traffic, *test], kept, place.home / name, bar
            )
            for name, kept in kinds.items()
        }
    tokenizer = AutoTokenizer.from_pretrained(place.teacher)
    heldout = {tuple(ids_of(tokenizer, prompt)) for prompt in test}
    for name, future in harvests.items():
        table = future.result()
        is_heldout = [tuple(ids) in heldout for ids in table["prompt_ids"].to_pylist()]
        if name == "top64":
            pq.write_table(table.filter(pa.array(is_heldout)), place.home / "heldout.parquet")
        is_traffic = pa.array([not held for held in is_heldout])
        pq.write_table(table.filter(is_traffic), place.home / f"{name}.parquet")
    pq.write_table(gold(place, tokenizer, test), place.home / "gold.parquet")
    bar.console.print("cutting the teacher down")
    torch.manual_seed(0)
    dataset = place.rows("top64")
    dataset = some(dataset, by_prompt(dataset)[: min(SIZES)])  # what every run has
    cut_student(place, dataset)


def ids_of(tokenizer: AutoTokenizer, prompt: Prompt) -> list[int]:
    """A prompt's token ids, as the engine makes them."""
    template = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    ids: list[int] = tokenizer.apply_chat_template(prompt.chat, **template)
    return ids


def gold(place: Place, tokenizer: AutoTokenizer, test: Iterable[Prompt]) -> pa.Table:
    """The right answers as rows of the log; their distributions are not looked at."""
    schema = pq.read_schema(place.home / "heldout.parquet")
    revision = pq.read_table(place.home / "heldout.parquet")["model_revision"][0].as_py()
    rows = []
    for number, prompt in enumerate(test):
        said = tokenizer.encode(prompt.answer, add_special_tokens=False)
        ids = [*said, tokenizer.eos_token_id]
        rows.append(
            {
                "exchange_id": f"gold{number}",
                "choice": 0,
                "model_revision": revision,
                "tokenizer_hash": tokenizer_hash(place.teacher),
                "prompt_ids": ids_of(tokenizer, prompt),
                "completion_ids": ids,
                "topk_size": [1] * len(ids),
                "topk_ids": ids,
                "topk_logprobs": [0.0] * len(ids),
                "tail_logprob": [-math.inf] * len(ids),
                "tail_draws": [],
            }
        )
    return pa.Table.from_pylist(rows, schema=schema)


def cut_student(place: Place, dataset: Dataset) -> None:
    """A quarter of the teacher, as ``retort distill`` cuts it."""
    teacher = open_teacher(place.teacher, CPU)
    rows = np.arange(len(dataset))
    student = Reduction(teacher, dataset, rows, 0, lambda _: None).run(CutConfig())
    student.save_pretrained(place.home / "start")


def train_all(
    place: Place, options: argparse.Namespace, sizes: Set[int], bar: Progress
) -> list[dict[str, Any]]:
    """Every arm with the largest of SIZES, two of them with others; a process per core."""
    jobs = [
        Job(arm, size, seed, options.steps, "steps")
        for seed in range(SEEDS[options.full])
        for size in sorted(sizes, reverse=True)
        for arm in ARMS
        if size == max(SIZES) or arm in COMPARED
    ]
    task = bar.add_task("students", total=len(jobs))
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:

        def train_each(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
            running = [pool.submit(run, job, place, options.data.name) for job in jobs]
            for done in as_completed(running):
                bar.advance(task)
                yield done.result()

        rows = list(train_each(jobs))
        if options.full:
            timed = in_equal_seconds(rows)
            bar.update(task, total=len(jobs) + len(timed))
            rows += train_each(timed)
    place_of = list(ARMS).index
    return sorted(
        rows,
        key=lambda row: (
            row["equal"] == "seconds",
            place_of(row["arm"]),
            row["prompts"],
            row["seed"],
        ),
    )


def in_equal_seconds(rows: Rows) -> list[Job]:
    """Every arm for as long as behaviour cloning took, by the steps that it made in its time."""
    took = {(row["arm"], row["seed"]): row for row in rows if row["prompts"] == max(SIZES)}
    return [
        Job(
            arm,
            max(SIZES),
            seed,
            round(row["steps"] * took["bc", seed]["seconds"] / row["seconds"]),
            "seconds",
        )
        for (arm, seed), row in took.items()
        if arm != "bc"
    ]


def kl(rows: Rows, arm: str, prompts: int = max(SIZES), equal: str = "steps") -> float:
    """Median KL of an arm over its seeds."""
    wanted = (arm, prompts, equal)
    found = [row["kl_nats"] for row in rows if (row["arm"], row["prompts"], row["equal"]) == wanted]
    return float(statistics.median(found))


def gap_closed(rows: Rows, arm: str, equal: str = "steps") -> float:
    """Share of the way from behaviour cloning's KL to the whole distribution's."""
    worst, best = kl(rows, "bc"), kl(rows, "full", equal=equal)
    return (worst - kl(rows, arm, equal=equal)) / (worst - best)


def prompts_ratio(rows: Rows) -> dict[str, float | bool]:
    """Prompts that logits need over those that behaviour cloning needs, for the same KL.

    Behaviour cloning with all prompts sets the KL; how many the other needs is read off between
    its two sizes around it. Where even its smallest does better, that size is an upper bound; where
    not even all prompts do, 1 is a lower one.
    """
    cloning, matching = COMPARED
    sizes = sorted({row["prompts"] for row in rows if row["arm"] == matching})
    wanted = kl(rows, cloning, sizes[-1])
    reached = [kl(rows, matching, size) for size in sizes]
    for place, value in enumerate(reached):
        if value > wanted:
            continue
        if place == 0:
            return {"prompts_ratio_for_same_kl": sizes[0] / sizes[-1], "ratio_is_bound": True}
        share = (reached[place - 1] - wanted) / (reached[place - 1] - value)
        needed = math.exp(math.log(sizes[place - 1]) * (1 - share) + math.log(sizes[place]) * share)
        return {"prompts_ratio_for_same_kl": needed / sizes[-1], "ratio_is_bound": False}
    return {"prompts_ratio_for_same_kl": 1.0, "ratio_is_bound": True}


def progress() -> Progress:
    """Bars on standard error."""
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)


def show(document: dict[str, object], rows: Rows) -> None:
    """Print what was written."""
    names = [field.name for field in fields(Row) if field.name != "task"]
    table = Table(*names)
    for row in rows:
        cells = [row[name] for name in names]
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    out = Console(file=sys.stdout, width=140)
    out.print(table)
    out.print({name: value for name, value in document.items() if name not in {"rows", "task"}})


if __name__ == "__main__":
    sys.exit(main())
