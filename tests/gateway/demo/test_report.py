import json
from pathlib import Path

from gateway.demo.prompts import Prompt
from gateway.demo.report import Model, Report, answered, write_report
from gateway.demo.rollouts import Tried
from gateway.demo.throughput import Comparison
from gateway.demo.traffic import Outcome, Round

PROMPT = Prompt((("user", "hi"),), '{"a": 1}', "common")
REASON = {
    "guard": "agreement",
    "finding": "breached",
    "observed": 0.0,
    "bound": 0.1,
    "threshold": 0.7,
    "sample": 20,
    "slice": None,
}
DECISION = {
    "at": "2026-11-24T00:00:00Z",
    "source": "shadow",
    "target": "rolled_back",
    "share": 0.0,
    "by": "guards",
    "note": "agreement",
    "reasons": [REASON],
}


COMPARED: dict[str, object] = {
    "margin": 0.02,
    "verdict": {"overall": {"sentence": "All rows say so"}, "worst_slice": None},
    "slices": [
        {"kind": "all", "name": "rows", "rows": 9, "teacher": 1.0, "student": 0.875}
        | {"difference": -0.125, "low": -0.25, "high": 0.0}
    ],
    "examples": {"0": {}},
}


def outcome(deployment: str | None, failure: str | None = None, text: str = "") -> Outcome:
    return Outcome(PROMPT, text, failure, deployment, 5)


def made(common: float | None) -> Report:
    teacher = Round((outcome("teacher", text='{"a":1}'),), 2.0)
    model = Model(1000, 2000, common, common, 100.0, 0.9, 0.01)
    good = Tried("live", "new", [DECISION], tuple(outcome("old") for _ in range(60)))
    bad = Tried("rolled_back", "bad", [DECISION], (outcome("bad"), outcome(None, "500")))
    return Report(
        teacher="t",
        prompts="p",
        outcomes=[outcome("old")] * 3,
        verified={"complete_fraction": 1.0},
        stats={"tokens": 7, "bytes_per_token": 21.5},
        comparison=Comparison((95.0, 99.0, 97.0), (100.0, 100.0, 100.0), teacher),
        models={"teacher": model, "student": model},
        good=good,
        bad=bad,
        compared=COMPARED,
        seconds={"total": 1.0},
    )


def test_the_report_holds_what_was_measured(tmp_path: Path) -> None:
    write_report(made(0.5), tmp_path)

    document = json.loads((tmp_path / "report.json").read_text())
    assert document["requests"] == 65
    assert document["failed_requests"] == 1
    assert document["capture"]["throughput_ratio"] == 0.97
    assert document["capture"]["complete_fraction"] == 1.0
    assert document["models"]["student"]["kl_to_teacher_nats"] == 0.01
    assert document["compare"]["slices"] == COMPARED["slices"]
    assert "examples" not in document["compare"]
    assert document["rollout"]["good"]["state"] == "live"
    assert document["rollout"]["bad"]["clients_affected"] == 2


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = write_report(made(0.5), tmp_path).read_text()

    assert page.count("<svg") == 5
    assert "agreement" in page
    assert "All rows say so" in page
    assert "-12.5" in page
    assert "<script" not in page
    assert "<link" not in page


def test_prompts_without_answers_have_no_quality_plot(tmp_path: Path) -> None:
    page = write_report(made(None), tmp_path).read_text()

    assert page.count("<svg") == 4


def test_the_share_of_each_deployment_is_over_a_window() -> None:
    curves = answered([outcome("old")] * 50 + [outcome("new")] * 50)

    assert curves["old"][0] == (50, 1.0)
    assert curves["new"][-1] == (100, 1.0)


def test_json_answers_are_compared_by_value() -> None:
    assert outcome("x", text='{ "a" : 1 }').is_exact
    assert not outcome("x", text='{"a": 2}').is_exact
    assert not outcome("x", text="a").is_exact
