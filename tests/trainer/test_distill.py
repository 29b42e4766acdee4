"""``retort distill`` from a real log to a checkpoint, in this process."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from capture.errors import ConfigError
from capture.log import Log
from capture.revision import model_revision, tokenizer_hash
from tests.support.distill_run import distill, make_home, write_config
from tests.support.tiny_model import make_tiny_model
from trainer.checkpoint import replacing
from trainer.course import Point, by_metric, divide
from trainer.dataset import COLUMNS, from_table, split
from trainer.errors import DatasetError, DivergedError, ModelError, TooLargeError, TrainerError
from trainer.evaluation import Quality, evaluate
from trainer.losses import LOSSES, Targets
from trainer.manifest import verify_folder
from trainer.student_view import Seen


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("distill"))


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    result = distill(write_config(home, out='"first"'))
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        name: value
        for name, value in json.loads((home / "first" / "metrics.json").read_text()).items()
        if name != "format_version"
    }
    return home / "first"


def test_the_checkpoint_is_a_whole_model_folder_a_quarter_of_the_teacher(
    finished: Path, home: Path
) -> None:
    checkpoint = finished / "checkpoint"
    manifest = verify_folder(checkpoint)
    student = AutoModelForCausalLM.from_pretrained(checkpoint)
    teacher = AutoModelForCausalLM.from_pretrained(home / "teacher")
    assert student.dtype == torch.bfloat16
    assert type(student) is type(teacher)
    assert manifest.parameters * 4 <= sum(weight.numel() for weight in teacher.parameters())
    assert tokenizer_hash(checkpoint) == tokenizer_hash(home / "teacher")
    messages = [{"role": "user", "content": "hi"}]
    prompts = [
        AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, return_dict=False)
        for folder in (checkpoint, home / "teacher")
    ]
    assert prompts[0] == prompts[1]
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_the_manifest_says_what_the_student_learned_from(finished: Path, home: Path) -> None:
    lineage = verify_folder(finished / "checkpoint").lineage
    assert lineage.snapshot == Log(home / "log").snapshot(view="answers").model_dump(mode="json")
    assert lineage.teacher_revision == model_revision(home / "teacher")
    assert lineage.parent_revision == model_revision(home / "teacher")
    assert lineage.recipe["heldout_fraction"] == 0.3
    assert lineage.recipe["loss"] == "forward_kl"


def test_metrics_hold_what_was_measured(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    before, after = metrics["heldout_before_training"], metrics["heldout"]
    assert 0 < after["rows"] < 40 - metrics["rows"]  # others chose the weights
    assert after["tokens"] == 6 * after["rows"]
    assert metrics["steps"] == 12
    assert 0 < metrics["tokens"] <= 12 * 256
    assert metrics["tokens_per_second"] == pytest.approx(metrics["tokens"] / metrics["seconds"])
    assert after["kl_to_teacher_nats"] < before["kl_to_teacher_nats"]
    assert 0 <= after["top1_agreement"] <= 1
    assert math.isfinite(after["cross_entropy"])
    assert metrics["student_parameters"] * 4 <= metrics["teacher_parameters"]
    quality = verify_folder(finished / "checkpoint").quality
    assert quality["kl_to_teacher_nats"] == after["kl_to_teacher_nats"]


def test_what_was_measured_is_the_checkpoint_as_it_lies_there(finished: Path, home: Path) -> None:
    log = Log(home / "log")
    dataset = from_table(log.read(log.snapshot("true"), COLUMNS), home / "teacher")
    _, measured = divide(dataset, split(dataset, 0.3)[1], 256)
    model = AutoModelForCausalLM.from_pretrained(finished / "checkpoint", dtype=torch.float32)
    found = asdict(evaluate(model, dataset, measured, 1024))

    assert found == pytest.approx(json.loads((finished / "metrics.json").read_text())["heldout"])


def test_lora_corrects_a_student_and_leaves_an_ordinary_model(home: Path) -> None:
    small = make_tiny_model(home / "small", hidden_size=64, seed=3)
    settings = {"lora_rank": "4", "learning_rate": "1e-2", "warmup": "0", "steps": "30"}
    path = write_config(home, out='"lora"', student='"small"', **settings)
    assert distill(path).exit_code == 0
    metrics = json.loads((home / "lora" / "metrics.json").read_text())
    start, end = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (small, home / "lora" / "checkpoint")
    )

    before, after = metrics["heldout_before_training"], metrics["heldout"]
    assert after["kl_to_teacher_nats"] < before["kl_to_teacher_nats"]
    assert end.keys() == start.keys()
    changed = {name for name in end if not torch.allclose(end[name], start[name], atol=1e-2)}
    assert changed
    assert all("_proj" in name for name in changed)
    tied = start["lm_head.weight"].numel()  # with the embedding, so there once
    assert metrics["student_parameters"] == sum(p.numel() for p in start.values()) - tied


def test_the_course_and_the_baseline_are_told(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    points, baseline = metrics["points"], metrics["baseline"]
    found = [Point(**{**point, "quality": Quality(**point["quality"])}) for point in points]

    assert [point["step"] for point in points] == list(range(1, 13))
    assert metrics["best_step"] == by_metric(found).step
    assert baseline["heldout"]["rows"] == metrics["heldout"]["rows"]
    assert baseline["steps"] >= 1
    assert "distribution" in (finished / "report.html").read_text()


def test_a_loss_that_is_no_number_is_told_and_what_was_finished_stays(
    home: Path, finished: Path
) -> None:
    before = (finished / "metrics.json").read_bytes()
    path = write_config(home, out='"first"', learning_rate="1e30", steps="40", warmup="0")

    with pytest.raises(DivergedError, match="lower learning_rate"):
        distill(path)
    assert (finished / "metrics.json").read_bytes() == before
    verify_folder(finished / "checkpoint")


def test_a_step_that_does_not_fit_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(seen: Seen, _: Targets) -> Tensor:
        return seen.label_N + torch.empty(2**50, dtype=torch.float32).sum()

    monkeypatch.setitem(LOSSES, "forward_kl", greedy)
    with pytest.raises(
        TooLargeError, match="batch_tokens = 256 does not fit into memory: lower it"
    ):
        distill(write_config(home, out='"large"'))


def test_tensorboard_shows_the_run(finished: Path) -> None:
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss_nats")] == [10, 12]


def test_a_run_repeats_bit_for_bit_and_replaces_the_last_one(home: Path, finished: Path) -> None:
    path = write_config(home, out='"second"')
    digests = []
    for _ in range(2):
        assert distill(path).exit_code == 0
        digests.append(model_revision(home / "second" / "checkpoint"))
    assert digests == [model_revision(finished / "checkpoint")] * 2
    left = sorted(item.name for item in (home / "second").iterdir())
    assert left == ["checkpoint", "metrics.json", "report.html", "tensorboard"]


def test_a_student_folder_is_trained_further(home: Path, finished: Path) -> None:
    path = write_config(
        home, student='"first/checkpoint"', out='"third"', loss='"behaviour_cloning"'
    )
    assert distill(path).exit_code == 0
    lineage = verify_folder(home / "third" / "checkpoint").lineage
    assert lineage.parent_revision == model_revision(finished / "checkpoint")
    assert lineage.recipe["loss"] == "behaviour_cloning"


def test_a_student_may_begin_with_random_weights(home: Path) -> None:
    small = make_tiny_model(home / "shape", hidden_size=32)
    (small / "model.safetensors").unlink()
    (small / "tokenizer.json").unlink()
    path = write_config(home, out='"new"', student='"shape"', from_scratch="true", steps="60")
    metrics = json.loads(distill(path).stdout)
    model = AutoModelForCausalLM.from_pretrained(home / "new" / "checkpoint")

    before, after = metrics["heldout_before_training"], metrics["heldout"]
    assert after["kl_to_teacher_nats"] < before["kl_to_teacher_nats"]
    assert model.config.hidden_size == 32
    assert tokenizer_hash(home / "new" / "checkpoint") == tokenizer_hash(home / "teacher")


def test_a_plan_writes_nothing_and_says_what_a_run_would_do(home: Path) -> None:
    result = distill(write_config(home, out='"planned"'), "plan")
    plan = json.loads(result.stdout)
    assert plan["rows"] + plan["heldout_rows"] == 40
    assert plan["student_parameters"] * 4 <= plan["teacher_parameters"]
    assert plan["disk_bytes"] == 2 * plan["student_parameters"]
    assert plan["training_seconds"] > 0
    assert plan["epochs"] > 1
    assert plan["read_bytes"] > 0
    assert plan["peak_memory_bytes"] > 16 * plan["student_parameters"]
    assert plan["hours"] == pytest.approx(2 * plan["training_seconds"] / 3600)
    assert plan["cost"] is None
    assert not (home / "planned").exists()


def test_a_plan_for_a_gpu_has_a_price(home: Path) -> None:
    path = write_config(home, out='"planned"', baseline="false")
    result = distill(path, "plan", "--gpu", "h100", "--price-per-hour", "2.5")
    plan = json.loads(result.stdout)

    flops = 6 * plan["student_parameters"] * plan["tokens"]
    assert plan["hours"] == pytest.approx(flops / (0.3 * 989e12) / 3600)
    assert plan["cost"] == pytest.approx(2.5 * plan["hours"])


@pytest.mark.parametrize(
    ("replaced", "error", "message"),
    [
        ({"where": "\"route = 'none'\""}, DatasetError, "no example.*where"),
        ({"log": '"nowhere"'}, ConfigError, "nowhere: no such folder"),
        ({"teacher": '"nowhere"'}, ConfigError, "nowhere: no config.json"),
        ({"student": '"log"'}, ConfigError, "log: no config.json"),
        ({"student": '"stranger"'}, ModelError, "tokenizer .* expected the teacher's"),
        ({"teacher": '"torn"'}, ModelError, "torn: not a model that transformers can load"),
        ({"learning_rat": "1"}, ConfigError, "did you mean 'learning_rate'"),
        ({"loss": '"mse"'}, ConfigError, "loss is 'mse'"),
        ({"lora_rank": "4"}, ConfigError, "lora_rank needs a student"),
        ({"from_scratch": "true"}, ConfigError, "from_scratch needs a config.json"),
        ({"from_scratch": "true", "student": '"stranger"'}, ModelError, "no model that trans"),
        ({"metric": '"bleu"'}, ConfigError, "metric is 'bleu': expected one of"),
    ],
)
def test_a_mistake_is_named(
    home: Path, replaced: dict[str, str], error: type[Exception], message: str
) -> None:
    (home / "stranger").mkdir(exist_ok=True)
    (home / "stranger" / "config.json").write_text("{}")
    weights = make_tiny_model(home / "torn") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(error, match=message):
        distill(write_config(home, **replaced))


def test_examples_longer_than_the_student_s_context_are_refused(home: Path) -> None:
    short = make_tiny_model(home / "short", hidden_size=64)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))
    with pytest.raises(TrainerError, match=r"has \d+ tokens, the student takes 8.*where"):
        distill(write_config(home, student='"short"'))


def test_an_interrupted_write_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "weights").write_text("old")

    def write_half() -> None:
        with replacing(tmp_path / "checkpoint") as temporary:
            (temporary / "weights").write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [item.name for item in tmp_path.iterdir()] == ["checkpoint"]
    assert (tmp_path / "checkpoint" / "weights").read_text() == "old"
