import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.answered_rows import answer
from tests.support.distill_run import distill, make_home, write_config
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import from_table
from trainer.examination import Examination
from trainer.task import Task

pytestmark = pytest.mark.usefixtures("float32_products")
ROWS = np.arange(40)  # more than are answered at a time


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("task") / "teacher")


def test_a_metric_sees_the_students_greedy_answer_to_every_prompt(teacher: Path) -> None:
    dataset = from_table(answer(teacher, len(ROWS)), teacher)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    seen: dict[str, tuple[str, str]] = {}

    def metric(prompt: str, said: str, reference: str) -> float:
        seen[prompt] = said, reference
        return len(seen) % 2

    value = Task.of(metric, teacher).measure(model, dataset, ROWS)
    assert value == 0.5
    for row in range(len(ROWS)):
        prompt, wanted = dataset.prompt_ids.row(row), dataset.completion_ids.row(row)
        alone = model.generate(
            torch.tensor(prompt[None].astype(np.int64)), max_new_tokens=6, do_sample=False
        )[0, len(prompt) :].tolist()
        expected = [tokenizer.decode(ids, skip_special_tokens=True) for ids in (alone, wanted)]
        assert seen[tokenizer.decode(prompt, skip_special_tokens=True)] == tuple(expected)


def test_what_comes_after_the_end_of_an_answer_is_not_looked_at(teacher: Path) -> None:
    dataset = from_table(answer(teacher, 4), teacher)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    answers: list[str] = []

    def metric(_prompt: str, said: str, _reference: str) -> float:
        answers.append(said)
        return 1.0

    task = Task.of(metric, teacher)
    assert task.ends == [1]
    every = list(range(model.config.vocab_size))
    Task(metric, task.tokenizer, every).measure(model, dataset, ROWS[:4])
    assert all(len(said) <= 1 for said in answers)


def test_only_so_many_rows_are_answered_but_all_are_read(teacher: Path) -> None:
    dataset = from_table(answer(teacher, 8), teacher)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    task = Task.of(lambda _prompt, _said, _reference: 0.25, teacher)
    quality = Examination(dataset, 256, task, 3).of(model, ROWS[:8])

    assert (quality.metric, quality.metric_rows, quality.rows) == (0.25, 3, 8)
    plain = Examination(dataset, 256, None, 3).of(model, ROWS[:8])
    assert (plain.metric, plain.metric_rows) == (plain.exact_match, 8)


def test_a_users_metric_chooses_the_weights(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    (home / "own.py").write_text(
        "looks = []\n"
        "def early(prompt, answer, reference):\n"
        "    looks.append(answer)\n"
        "    return 4 < len(looks) <= 8\n"  # true of the first look after the start
    )
    settings = {"metric": '"own.py:early"', "eval_every": "3", "eval_rows": "4"}
    result = distill(write_config(home, baseline="false", **settings))
    metrics = json.loads(result.stdout)

    assert metrics["metric"] == "own.py:early"
    assert [point["step"] for point in metrics["points"]] == [3, 6, 9, 12]
    assert metrics["best_step"] == 3
    assert metrics["heldout"]["metric_rows"] == 4 <= metrics["heldout"]["rows"]
    assert "own.py:early" in (home / "out" / "report.html").read_text()
    manifest = json.loads((home / "out" / "checkpoint" / "retort.json").read_text())
    assert manifest["lineage"]["recipe"]["metric"] == "own.py:early"


def test_looks_leave_no_trace_in_how_the_checkpoint_generates(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    (home / "teacher" / "generation_config.json").unlink()
    settings = {"student": '"teacher"', "metric": '"json_valid"', "eval_rows": "4", "steps": "3"}
    distill(write_config(home, baseline="false", **settings))
    found = json.loads((home / "out/checkpoint/generation_config.json").read_text())

    assert found["eos_token_id"] == 1
    assert "max_new_tokens" not in found
