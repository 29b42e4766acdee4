"""Train with one of TRL's trainers and say when each step ended; runs in TRL's own environment.

``python -I trl_worker.py gkd|distillation folder`` reads ``task.json``, ``student`` and ``teacher``
in it and writes ``gkd.json`` or ``distillation.json``. An item of the data set is the number of a
batch, so that the trainers take the batches as they are.

Shape suffixes: B rows of a batch, T tokens.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

IGNORED = -100
Batch = list[tuple[list[int], list[int]]]


class Clock(TrainerCallback):
    """Keeps when each step ended, seconds."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended.append(time.perf_counter())


class Given:
    """The batches, by number; keeps which were taken."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        self.taken: list[int] = []

    def take(self, number: int) -> Batch:
        self.taken.append(number)
        return self.batches[number]

    def collate(self, items: list[dict[str, str]]) -> dict[str, Tensor]:
        """What ``GKDTrainer`` trains on, right-padded: nothing but a lookup and a copy."""
        (item,) = items
        batch = self.take(int(item["prompt"]))
        rows = [torch.tensor(prompt + completion) for prompt, completion in batch]
        labels = [
            torch.tensor([IGNORED] * len(prompt) + completion) for prompt, completion in batch
        ]
        return {
            "input_ids": pad_sequence(rows, batch_first=True),
            "attention_mask": pad_sequence(
                [torch.ones_like(row) for row in rows], batch_first=True
            ),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }


class GivenAnswers(DistillationTrainer):
    """The stable trainer, handed answers where it would generate them."""

    def __init__(self, given: Given, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.given = given
        self.answers: list[list[int]] = []

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        (number,) = prompts
        batch = self.given.take(int(number))
        self.answers = [completion for _, completion in batch]
        return [prompt for prompt, _ in batch], None, {}

    def _generate_single_turn(self, *_: Any, **__: Any) -> list[list[int]]:
        return self.answers


def main() -> None:
    """Train and write."""
    name, home = sys.argv[1], Path(sys.argv[2])
    task = json.loads((home / "task.json").read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])
    given, clock = Given(task["batches"]), Clock()
    trainer = {"gkd": gkd, "distillation": distillation}[name](task, home, given)
    trainer.add_callback(clock)
    trainer.train()
    if given.taken != list(range(task["steps"])) or len(clock.ended) != task["steps"]:
        sys.exit(f"{name} took batches {given.taken} in {len(clock.ended)} steps")
    versions = {name: version(name) for name in ("trl", "transformers", "accelerate", "torch")}
    said = {"ended_seconds": clock.ended, "versions": versions}
    (home / f"{name}.json").write_text(json.dumps(said), encoding="utf-8")


def gkd(task: dict[str, Any], home: Path, given: Given) -> Trainer:
    """Off-policy forward KL: no answer is generated."""
    config = GKDConfig(
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        train_sampling_strategy="sequential",
        **settings(task, home),
    )
    return GKDTrainer(args=config, data_collator=given.collate, **parts(task, home))


def distillation(task: dict[str, Any], home: Path, given: Given) -> Trainer:
    """Forward KL on the answers that it is handed."""
    config = DistillationConfig(beta=0.0, shuffle_dataset=False, **settings(task, home))
    return GivenAnswers(given, args=config, **parts(task, home))


def settings(task: dict[str, Any], home: Path) -> dict[str, Any]:
    """What both are told; their optimizer is the default one, fused AdamW."""
    beta1, beta2 = task["betas"]
    return {
        "output_dir": str(home / "out"),
        "max_steps": task["steps"],
        "per_device_train_batch_size": 1,  # an item is a batch
        "learning_rate": task["learning_rate"],
        "lr_scheduler_type": "constant",
        "adam_beta1": beta1,
        "adam_beta2": beta2,
        "weight_decay": task["weight_decay"],
        "max_grad_norm": task["max_grad_norm"],
        "bf16": task["is_bfloat16"],
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def parts(task: dict[str, Any], home: Path) -> dict[str, Any]:
    """Models, tokenizer and the numbers of the batches."""
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(home / name, dtype="auto")
        for name in ("student", "teacher")
    )
    return {
        "model": student,
        "teacher_model": teacher,
        "processing_class": AutoTokenizer.from_pretrained(task["tokenizer"]),
        "train_dataset": Dataset.from_dict({"prompt": [str(n) for n in range(task["steps"])]}),
    }


if __name__ == "__main__":
    main()
