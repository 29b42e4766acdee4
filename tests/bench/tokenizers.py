"""What a student loses by a tokenizer of its own, and whether matching vocabularies gives it back.

``python -m tests.bench.tokenizers --home HOME --text FILE...`` takes the teacher and the log of
``retort demo`` in HOME and cuts one student from it. A copy of that student gets a byte-level BPE
learned on the texts, each of its tokens the mean of what the teacher's tokens for it were. Each
is trained on the log both ways that it can be, and they are compared by the share of held-out
prompts that they answer word for word as the teacher did.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from capture.log import Log
from tests.bench.distilling import told, write_run
from tests.bench.models import demo_teacher
from trainer.config import CutConfig
from trainer.dataset import COLUMNS, from_table
from trainer.reduction import Reduction
from trainer.student import open_teacher

METRIC = "def same(prompt, answer, reference):\n    return answer == reference\n"
CUT_ROWS = 500
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Arm:
    """A student and what it learns from."""

    student: str
    loss: str


ARMS: Mapping[str, Arm] = {
    "teacher's tokens, distribution": Arm("kin", "forward_kl"),
    "teacher's tokens, words": Arm("kin", "behaviour_cloning"),
    "own tokens, words": Arm("stranger", "behaviour_cloning"),
    "own tokens, shared vocabulary": Arm("stranger", "shared_vocabulary_kl"),
}


def main() -> int:
    """Cut, train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("demo"), help="of `retort demo`")
    parser.add_argument("--teacher", type=Path, help="who answered; default: the demo's own")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="what its BPE learns")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args()
    home = options.home.resolve()
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as name:
        work = Path(name)
        (work / "same.py").write_text(METRIC, encoding="utf-8")
        teacher, log = (options.teacher or demo_teacher(home)).resolve(), home / "log"
        shared = make_students(teacher, Log(log), work, options)
        jobs = [(arm, seed) for seed in range(options.seeds) for arm in ARMS]
        run = partial(train, log=log, teacher=teacher, work=work, steps=options.steps)
        with ThreadPoolExecutor(2) as pool:  # one core each
            rows = list(pool.map(run, *zip(*jobs, strict=True)))
    document = {"vocabulary": options.vocabulary, "shared_tokens": shared, "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "tokenizers.json"
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    show(rows)
    console.print(path)
    return 0


def make_students(teacher: Path, log: Log, work: Path, options: argparse.Namespace) -> int:
    """Write ``kin`` and ``stranger``.

    Returns:
        How many of the stranger's tokens are written as one of the teacher's.
    """
    table = log.read(log.snapshot("role = 'incumbent'"), list(COLUMNS)).slice(0, CUT_ROWS)
    dataset = from_table(table, teacher)
    torch.manual_seed(0)
    model = open_teacher(teacher, torch.device("cpu"))
    rows = np.arange(len(dataset))
    student = Reduction(model, dataset, rows, 0, console.print).run(CutConfig())
    theirs = AutoTokenizer.from_pretrained(teacher)
    student.save_pretrained(work / "kin")
    theirs.save_pretrained(work / "kin")
    texts = (path.read_text(encoding="utf-8") for path in options.text)
    ours = learned(theirs, texts, options.vocabulary)
    transplant(student, theirs, ours)
    student.save_pretrained(work / "stranger")
    ours.save_pretrained(work / "stranger")
    return len(theirs.get_vocab().keys() & ours.get_vocab().keys())


def learned(
    theirs: PreTrainedTokenizerFast, texts: Iterable[str], size: int
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the teacher's special tokens and chat template."""
    special = theirs.convert_ids_to_tokens(sorted(theirs.all_special_ids))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=theirs.chat_template,
        additional_special_tokens=special,
        eos_token=theirs.eos_token,
        bos_token=theirs.bos_token,
        pad_token=theirs.pad_token,
    )


def transplant(
    student: PreTrainedModel, theirs: PreTrainedTokenizerFast, ours: PreTrainedTokenizerFast
) -> None:
    """Give a model other tokens, each beginning as the mean of those that it was written with."""
    vocabulary = theirs.get_vocab()
    tokens = ours.convert_ids_to_tokens(range(len(ours)))
    written = [
        [vocabulary[token]]
        if token in vocabulary
        else theirs.encode(ours.decode([number]), add_special_tokens=False)
        for number, token in enumerate(tokens)
    ]
    before = [matrix.detach().clone() for matrix in matrices(student)]
    student.resize_token_embeddings(len(ours), mean_resizing=False)
    with torch.no_grad():
        for matrix, old in zip(matrices(student), before, strict=True):
            matrix.copy_(torch.stack([old[pieces].mean(0) for pieces in written]))
    for config in (student.config, student.generation_config):
        config.eos_token_id, config.pad_token_id = ours.eos_token_id, ours.pad_token_id


def matrices(model: PreTrainedModel) -> list[torch.Tensor]:
    """What tokens are looked up in and scored with; twice the same where they are tied."""
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def train(arm: str, seed: int, log: Path, teacher: Path, work: Path, steps: int) -> dict[str, Any]:
    """Run ``retort distill`` once."""
    chosen = ARMS[arm]
    name = f"{list(ARMS).index(arm)}-{seed}"
    path = work / f"{name}.toml"
    write_run(
        path,
        log=str(log),
        where="role = 'incumbent'",
        teacher=str(teacher),
        student=chosen.student,
        out=name,
        loss=chosen.loss,
        metric="same.py:same",
        learning_rate=1e-3,
        steps=steps,
        seed=seed,
        heldout_fraction=0.1,
        eval_rows=400,
        eval_every=steps,
        baseline=False,
    )
    metrics = told(path)
    console.print(f"{arm}, seed {seed}: {metrics['heldout']['metric']:.3f}")
    return {
        "arm": arm,
        "seed": seed,
        "metric": metrics["heldout"]["metric"],
        "heldout_rows": metrics["heldout"]["metric_rows"],
        "tokens": metrics["tokens"],
        "retokenized": metrics["retokenized"],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print medians over the seeds."""
    table = Table("student", "as the teacher said", "lowest", "highest")
    for arm in ARMS:
        found = [row["metric"] for row in rows if row["arm"] == arm]
        cells = (statistics.median(found), min(found), max(found))
        table.add_row(arm, *(f"{100 * cell:.1f} %" for cell in cells))
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    sys.exit(main())
