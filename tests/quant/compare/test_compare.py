"""``retort compare`` on two tiny models and a log that one of them answered, through real vLLM."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from capture.log import Log
from gateway.__main__ import main
from quant.compare.comparison import language_of, slices_of
from quant.compare.rows import Choice, choose_rows
from tests.support.answered_rows import answer, write_log
from tests.support.fake_judge import NAME, likes_long
from tests.support.json_server import json_server
from tests.support.tiny_model import make_tiny_model
from trainer.evaluation import evaluate
from trainer.student import open_teacher

CONFIG = """\
[capture]
log = "log"

[quant]
heldout_fraction = 0.9
engine_args = ["--enforce-eager", "--distributed-executor-backend", "uni", "--dtype", "float32"]
"""
METRIC = """\
def first_letter(prompt, answer, reference):
    return float(answer[:1] == reference[:1])
"""


def shaken(model: Path, folder: Path) -> Path:
    """The same model with a little noise on its weights."""
    made = make_tiny_model(folder)
    student = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.01)
    student.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    teacher = make_tiny_model(folder / "teacher")
    shaken(teacher, folder / "student")
    said = [{"role": "user", "content": f"order {row * row * row}"} for row in range(100)]
    requests = [json.dumps({"messages": [each]}) for each in said]
    write_log(answer(teacher, 100), folder / "log", folder / "spool", requests=requests)
    (folder / "retort.toml").write_text(CONFIG)
    (folder / "own.py").write_text(METRIC)
    return folder


def compare(home: Path, *words: str) -> int:
    """Run the command; one metric of the user's own."""
    folders = [str(home / name) for name in ("teacher", "student")]
    config = ["-c", str(home / "retort.toml"), "--out", str(home / "out")]
    return main(["compare", *folders, *config, *words])


@pytest.mark.engine
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_student_is_compared_with_its_teacher(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = f"{home / 'own.py'}:first_letter"

    with json_server(likes_long) as url:
        judge = ("--judge", url, "--judge-model", NAME)
        code = compare(home, "--rows", "60", "--metric", metric, *judge, "--cascade", "--json")

    content = json.loads(capsys.readouterr().out)
    out = home / "out"
    assert code == 0
    assert content == json.loads((out / "compare.json").read_text())
    files = sorted(path.name for path in out.iterdir())
    assert files == ["compare.html", "compare.json", "training.npz"]
    everything = content["slices"][0]
    measures = content["measures"]
    assert 0 < measures["exact_match"] < everything["student"] < everything["teacher"] == 1
    assert everything["low"] <= everything["difference"] <= everything["high"] <= 1
    kinds = {row["kind"] for row in content["slices"][1:]}
    assert {"rarity", "teacher's uncertainty", "prompt length"} <= kinds
    worst = content["examples"][str(everything["worst"][0])]
    assert worst["teacher"][:1] != worst["student"][:1]
    assert content["verdict"]["overall"]["sentence"].split(";")[0] in (
        out / "compare.html"
    ).read_text(encoding="utf-8")
    assert content["decode_ratio"] > 0
    has_a_cascade(content)
    is_read_by_advise(home, capsys)
    assert (content["judge"]["rows"], content["judge"]["unread"]) == (60, 0)
    assert content["judge"]["student_better"] + content["judge"]["teacher_better"] > 0
    is_near_the_trainers_figures(home, measures["teacher_forced"], content["log"]["rows"])


def has_a_cascade(content: dict[str, Any]) -> None:
    """From answers that nobody is sure of to the student alone; the teacher's own cost on top."""
    costs: dict[str, tuple[float, float]] = {}
    for name, found in content["cascade"].items():
        first, *_, last = found["points"]
        assert (first["escalated"], first["difference"]) == (1.0, 0.0)
        assert (last["escalated"], last["quality"]) == (0.0, content["slices"][0]["student"])
        assert len(found["points"]) > 3
        costs[name] = first["cost"], last["cost"]
    whole, first = (content["cascade"][name] for name in ("mean_logprob", "first_tokens"))
    assert "of a whole answer: " in whole["sentence"]
    assert "of a stream's first 16 tokens: " in first["sentence"]
    # What the student writes before the teacher answers everything: all, a beginning, nothing.
    alone = costs["mean_logprob"][1]
    assert {last for _, last in costs.values()} == {alone}
    assert costs["mean_logprob"][0] == pytest.approx(alone + 1)
    assert 1 < costs["first_tokens"][0] <= alone + 1
    assert costs["distance"][0] == pytest.approx(1)


def is_read_by_advise(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was measured here takes the place of assumptions."""
    compared = home / "out" / "compare.json"
    words = ("--compare", str(compared), "--set", "requests_per_month=1e6", "--json")
    assert main(["advise", "-c", str(home / "retort.toml"), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "is left out: its teacher is" in found["warnings"][-1]  # the log's rows name no model


def is_near_the_trainers_figures(home: Path, looks: dict[str, dict[str, float]], num: int) -> None:
    """What the engines say of the log's tokens is what this process says of the same rows."""
    rows = choose_rows(
        Log(home / "log"), home / "teacher", home / "student", Choice("true", num, 0.9)
    )
    for name, look in looks.items():
        model = open_teacher(home / name, torch.device("cpu"))
        quality = evaluate(model, rows.dataset, np.arange(num), 4096)
        assert num == 60
        assert look["agreement"] == pytest.approx(quality.top1_agreement, abs=0.01)
        assert quality.kl_to_teacher_nats is not None
        assert look["kl_nats"] == pytest.approx(quality.kl_to_teacher_nats, rel=0.1, abs=1e-4)
        assert look["kl_nats"] <= quality.kl_to_teacher_nats + 1e-4
        assert look["covered"] > 0.95
    assert looks["teacher"]["kl_nats"] < 1e-3 < looks["student"]["kl_nats"]


def test_the_rows_of_a_language_are_a_slice(home: Path) -> None:
    log, teacher, student = Log(home / "log"), home / "teacher", home / "student"
    rows = choose_rows(log, teacher, student, Choice("true", 60, 0.9))
    texts = ["Où est ma commande ?", "Where is my parcel, please?"] * 30

    slices = slices_of(rows, texts, [language_of(text) for text in texts], np.ones(60), 0)

    found = {each.name: each.rows.tolist() for each in slices if each.kind == "language"}
    assert found == {"fr": list(range(0, 60, 2)), "en": list(range(1, 60, 2))}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--metric", "bleu"), 2, "--metric is 'bleu': expected one of exact_match"),
        (("--metric", "gone.py:right"), 2, "--metric is 'gone.py:right'"),
        (("--judge", "http://127.0.0.1:1"), 2, "--judge and --judge-model go together"),
        (("-c", "gone.toml"), 2, "gone.toml: No such file or directory"),
    ],
)
def test_mistakes_are_told_before_an_engine_starts(
    home: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, said: str
) -> None:
    assert compare(home, *words) == code
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_a_judge_without_the_model_is_told_before_an_engine_starts(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[None] = []
    monkeypatch.setattr(
        "quant.compare.comparison.measure", lambda *_args, **_options: measured.append(None)
    )

    with json_server(likes_long) as url:
        code = compare(home, "--judge", url, "--judge-model", "other")

    assert code == 2
    assert "no route 'other'" in capsys.readouterr().err.replace("\n", " ")
    assert not measured


def test_a_missing_folder_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "student").rename(home / "moved")
    try:
        assert compare(home) == 1
    finally:
        (home / "moved").rename(home / "student")
    assert "student: no config.json there" in capsys.readouterr().err
