"""``retort distill rollouts`` and refinement on what it made, with tiny random models."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner, Result

from capture.commands import log_app
from capture.errors import ConfigError
from capture.log import Log, query
from capture.revision import model_revision
from capture.scores import Scores
from tests.support.answered_rows import answer, write_log
from tests.support.model_server import ModelServer, model_server
from tests.support.tiny_model import make_tiny_model
from trainer import distillation, onpolicy, rollout_commands
from trainer.answering import Answer
from trainer.commands import distill_app
from trainer.dataset import COLUMNS, from_table, is_heldout, split
from trainer.errors import ModelError
from trainer.evaluation import evaluate
from trainer.manifest import verify_folder
from trainer.scoring import score_answers
from trainer.student import open_teacher

NUM_ROWS, NUM_TOKENS = 90, 24
SETTINGS = {
    "log": '"log"',
    "teacher": '"teacher"',
    "out": '"out"',
    "heldout_fraction": "0.3",
    "batch_tokens": "256",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, the log of 90 of its answers, and a student near to it."""
    home = tmp_path_factory.mktemp("rollouts")
    teacher = make_tiny_model(home / "teacher", hidden_size=128)
    student = AutoModelForCausalLM.from_pretrained(
        make_tiny_model(home / "student", hidden_size=128), dtype=torch.float32
    )
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in student.parameters():
            if weight.dim() > 1:
                weight.add_(0.02 * torch.randn(weight.shape, generator=random))
    student.save_pretrained(home / "student")
    write_log(answer(teacher, NUM_ROWS), home / "log", home / "spool")
    return home


def write_config(home: Path, **replaced: str) -> Path:
    lines = SETTINGS | replaced
    path = home / f"run-{len(list(home.glob('run-*')))}.toml"
    path.write_text("[trainer]\n" + "\n".join(f"{key} = {value}" for key, value in lines.items()))
    return path


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(distill_app, [str(word) for word in words], catch_exceptions=False)


def roll_out(home: Path, folder: str, *words: str, student: str = "student") -> Result:
    models = ("--student", home / student, "-o", home / folder)
    return run(
        "rollouts", "-c", write_config(home), *models, "--max-new-tokens", str(NUM_TOKENS), *words
    )


@pytest.fixture(scope="module")
def made(home: Path, float32_products: None) -> Path:  # noqa: ARG001 - to compare exactly
    result = roll_out(home, "made", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["added"] == NUM_ROWS
    return home / "made"


def rows_of(folder: Path, sql: str) -> list[dict[str, Any]]:
    with Log(folder).connect() as connection:
        rows: list[dict[str, Any]] = query(connection, sql).to_pylist()
        return rows


ANSWERED = """
select logits.*, role, pair_id, params, exchanges.model_revision as answered_by
from logits join exchanges using (exchange_id)
"""


def test_each_prompt_is_answered_once_by_the_student_and_scored_by_the_teacher(
    made: Path, home: Path
) -> None:
    rows = rows_of(made, ANSWERED)
    asked = rows_of(home / "log", "select exchange_id, prompt_ids from examples")
    prompts = {row["exchange_id"]: row["prompt_ids"] for row in asked}

    assert {row["pair_id"]: row["prompt_ids"] for row in rows} == prompts
    assert len(rows) == NUM_ROWS
    assert {row["role"] for row in rows} == {"candidate"}
    assert {row["source"] for row in rows} == {"rollout"}
    assert {row["model_revision"] for row in rows} == {model_revision(home / "teacher")}
    assert {row["answered_by"] for row in rows} == {model_revision(home / "student")}
    assert {json.loads(row["params"])["max_tokens"] for row in rows} == {NUM_TOKENS}


@torch.inference_mode()
def test_the_distributions_are_the_teacher_s_at_the_student_s_tokens(
    made: Path, home: Path
) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(home / "teacher", dtype=torch.float32)
    for row in rows_of(made, "select * from examples limit 5"):
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        start = len(row["prompt_ids"]) - 1
        expected = teacher(ids).logits[0, start:-1].log_softmax(-1)
        best = expected.topk(64)
        ends = np.cumsum(row["topk_size"])
        for position, (end, size) in enumerate(zip(ends, row["topk_size"], strict=True)):
            entries = slice(end - size, end)
            assert row["topk_ids"][entries] == best.indices[position, :size].tolist()
            found = torch.tensor(row["topk_logprobs"][entries])
            assert torch.allclose(found, best.values[position, :size], atol=2e-3)
            tail = 1 - best.values[position, :size].exp().sum().item()
            assert math.exp(row["tail_logprob"][position]) == pytest.approx(tail, rel=1e-2)


def test_the_log_s_own_commands_read_and_check_it(made: Path) -> None:
    config = ("-c", str(made / "retort.toml"))
    found = CliRunner().invoke(log_app, ["verify", *config, "--json"])
    counted = CliRunner().invoke(
        log_app, ["sql", *config, "--csv", "select count(*) as n from examples"]
    )

    assert found.exit_code == 0
    assert json.loads(found.stdout)["problems"] == []
    assert json.loads(found.stdout)["committed"] == 2 * NUM_ROWS
    assert counted.stdout.split() == ["n", str(NUM_ROWS)]


def test_some_prompts_are_as_many_to_learn_from_and_a_share_of_those_held_out(home: Path) -> None:
    result = roll_out(home, "some", "--prompts", "10", "--json")
    rows = rows_of(home / "some", "select prompt_ids from examples")
    held_out = [is_heldout(row["prompt_ids"], 0.3) for row in rows]
    every = rows_of(home / "log", "select prompt_ids from examples")

    assert json.loads(result.stdout)["added"] == len(rows)
    assert held_out.count(False) == 10
    assert held_out.count(True) == sum(is_heldout(row["prompt_ids"], 0.3) for row in every)


def test_run_again_it_goes_on_where_it_was_interrupted(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []

    def tired(teacher: PreTrainedModel, answers: Sequence[Answer]) -> list[Scores]:
        scored.append(len(answers))
        if len(scored) == 4:  # the first call looks whether it is the teacher
            raise KeyboardInterrupt
        return score_answers(teacher, answers)

    monkeypatch.setattr(onpolicy, "PROMPTS_AT_ONCE", 20)
    with monkeypatch.context() as patch:
        patch.setattr(rollout_commands, "score_answers", tired)
        assert roll_out(home, "again").exit_code == 130
    assert len(rows_of(home / "again", "select 1 from examples")) == 40
    before = rows_of(home / "again", "select exchange_id, completion_ids from examples")

    assert json.loads(roll_out(home, "again", "--json").stdout)["added"] == NUM_ROWS - 40
    after = rows_of(home / "again", "select exchange_id, completion_ids from examples")
    assert len(after) == NUM_ROWS
    assert all(row in after for row in before)
    assert json.loads(roll_out(home, "again", "--json").stdout)["added"] == 0


def test_servers_answer_and_score_instead(home: Path) -> None:
    student, teacher = (ModelServer(home / name) for name in ("student", "teacher"))
    with model_server(student) as student_url, model_server(teacher) as teacher_url:
        urls = ("--student-url", student_url, "--teacher-url", teacher_url)
        assert roll_out(home, "served", *urls, "--prompts", "3").exit_code == 0
    rows = rows_of(home / "served", "select * from logits")

    assert len(rows) > 3
    assert {row["k_max"] for row in rows} == {20}
    assert {row["model_revision"] for row in rows} == {model_revision(home / "teacher")}
    assert all(len(row["topk_size"]) == len(row["completion_ids"]) <= NUM_TOKENS for row in rows)


def test_a_folder_of_something_else_is_left_alone(home: Path, made: Path) -> None:
    make_tiny_model(home / "other", seed=4)
    before = (made / "rollouts.json").read_bytes()

    with pytest.raises(ConfigError, match=r"other rollouts .student_revision .*another folder"):
        roll_out(home, "made", student="other")
    with pytest.raises(ConfigError, match=r"other rollouts .temperature 1.0, not 0.5"):
        roll_out(home, "made", "--temperature", "0.5")
    with pytest.raises(ConfigError, match="is not empty and holds no rollouts"):
        roll_out(home, "log")
    assert (made / "rollouts.json").read_bytes() == before


def test_a_teacher_that_is_not_the_log_s_is_refused(home: Path) -> None:
    stranger = make_tiny_model(home / "stranger", hidden_size=128, seed=5)

    with pytest.raises(ModelError, match=r"agrees with .* of the logged likeliest tokens"):
        run(
            *("rollouts", "-c", write_config(home, teacher='"stranger"')),
            *("--student", home / "student", "-o", home / "refused"),
        )
    with (
        model_server(ModelServer(stranger)) as url,
        pytest.raises(ModelError, match="it is not the model that answered"),
    ):
        roll_out(home, "refused-too", "--teacher-url", url)


def refine(home: Path, out: str, **replaced: str) -> Result:
    settings = {"log": '"made"', "student": '"student"', "loss": '"mixed_kl"', "out": f'"{out}"'}
    return run("-c", write_config(home, **{**settings, **replaced}))


@pytest.fixture(scope="module")
def refined(home: Path, made: Path) -> Path:
    assert made.is_dir()
    settings = {"steps": "120", "learning_rate": "1e-3", "warmup": "5", "batch_tokens": "512"}
    result = refine(home, "refined", **settings)
    assert result.exit_code == 0
    assert "On the student's own answers to held-out prompts KL" in result.stdout
    return home / "refined"


def test_refinement_brings_the_student_nearer_on_its_own_answers(refined: Path) -> None:
    metrics = json.loads((refined / "metrics.json").read_text())
    losses = EventAccumulator(str(refined / "tensorboard"))
    losses.Reload()
    curve = [event.value for event in losses.Scalars("train/loss_nats")]
    before, after = metrics["heldout_before_training"], metrics["heldout"]

    assert after["kl_to_teacher_nats"] <= 0.8 * before["kl_to_teacher_nats"]
    assert curve[-1] < 0.8 * curve[0]  # of mixed_kl, what it trained on
    assert metrics["stopped"] is None
    assert metrics["baseline"] is None


def test_so_it_does_on_what_it_answers_now(refined: Path, home: Path) -> None:
    assert roll_out(home, "second", student="refined/checkpoint").exit_code == 0
    log = Log(home / "second")
    dataset = from_table(log.read(log.snapshot(), COLUMNS), home / "teacher")
    _, held_out = split(dataset, 0.3)
    student = open_teacher(refined / "checkpoint", torch.device("cpu"))
    metrics = json.loads((refined / "metrics.json").read_text())
    found = evaluate(student, dataset, held_out, 1024)

    before = metrics["heldout_before_training"]["kl_to_teacher_nats"]
    assert found.kl_to_teacher_nats <= 0.8 * before


def test_weights_are_chosen_by_nearness_and_the_answers_are_no_measure(refined: Path) -> None:
    metrics = json.loads((refined / "metrics.json").read_text())
    nearest = min(metrics["points"], key=lambda point: point["quality"]["kl_to_teacher_nats"])

    assert metrics["best_step"] == nearest["step"]
    assert "exact_match" not in verify_folder(refined / "checkpoint").quality


def test_the_checkpoint_names_both_logs(refined: Path, home: Path) -> None:
    lineage = verify_folder(refined / "checkpoint").lineage
    rollouts = lineage.recipe["rollouts"]

    assert lineage.parent_revision == model_revision(home / "student")
    assert lineage.teacher_revision == model_revision(home / "teacher")
    assert lineage.snapshot is not None
    assert lineage.snapshot["log"] == str(home / "made")
    assert isinstance(rollouts, dict)
    assert rollouts["snapshot"] == Log(home / "log").snapshot().model_dump(mode="json")


@pytest.mark.parametrize(
    ("replaced", "words"),
    [
        ({"student": '"refined/checkpoint"'}, "answers of .* not its own.*rollouts` into another"),
        ({"heldout_fraction": "0.2"}, "heldout_fraction is 0.2.*divided by 0.3"),
        ({"student": None}, "holds answers of a student; name the folder"),
    ],
)
def test_answers_that_are_not_the_student_s_own_are_refused(
    home: Path, refined: Path, replaced: dict[str, str | None], words: str
) -> None:
    assert refined.is_dir()
    lines = SETTINGS | {"log": '"made"', "student": '"student"'} | replaced
    path = home / "refused.toml"
    given = (f"{key} = {value}" for key, value in lines.items() if value is not None)
    path.write_text("[trainer]\n" + "\n".join(given))

    with pytest.raises(ConfigError, match=words):
        run("-c", path)


def test_a_student_that_becomes_too_sure_is_stopped_and_its_best_weights_kept(
    home: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert made.is_dir()
    settings = {"steps": "400", "learning_rate": "5e-3", "warmup": "0", "eval_every": "4"}
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "save_checkpoint", interrupted)
        assert refine(home, "sure", loss='"behaviour_cloning"', **settings).exit_code == 130
    result = refine(home, "sure", loss='"behaviour_cloning"', **settings)
    metrics = json.loads((home / "sure" / "metrics.json").read_text())
    *healthy, last = metrics["points"]
    kept = next(point for point in healthy if point["step"] == metrics["best_step"])

    assert last["step"] < 400  # nor did it go on behind that when it was run again
    assert last["quality"]["entropy_ratio"] < 0.6
    assert all(point["quality"]["entropy_ratio"] >= 0.6 for point in healthy)
    assert kept == min(healthy, key=lambda point: point["quality"]["kl_to_teacher_nats"])
    assert f"stopped after step {last['step']} of 400" in metrics["stopped"]
    assert metrics["stopped"] in result.stdout
    verify_folder(home / "sure" / "checkpoint")
