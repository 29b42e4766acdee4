"""What was measured replaces what is assumed, and the advice says so."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gateway.__main__ import main
from quant.advise.files import Range
from quant.advise.measured import chance_of
from tests.quant.compare.test_findings import content
from tests.support.traffic_log import log_of, requests
from trainer.extrapolation import Prediction
from trainer.pilot import Pilot
from trainer.plan import Plan

LARGE = ("--set", "requests_per_month=60e6")
SIZE = 16_000_000_000  # bytes of the teacher
REVISION = "rev"  # of the model that answered in the log


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return log_of(tmp_path_factory.mktemp("files"), *requests(50, 10.0))


def told(capsys: pytest.CaptureFixture[str], config: Path, *words: str) -> dict[str, Any]:
    assert main(["advise", "-c", str(config), *LARGE, *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def path_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    path: dict[str, Any] = next(path for path in found["paths"] if path["name"] == name)
    return path


def matrix(path: Path, **int8: float | bool | None) -> Path:
    """A matrix of a teacher as it is and in one scheme."""
    plain = {"model": "teacher", "folder": "t", "scheme": "none", "made": True, "served": True}
    plain |= {"size_bytes": SIZE, "exact_match": 0.9, "speed": 1.0}
    plain |= {"quality_ratio": 1.0, "quality_ratio_worst": 1.0}
    row = plain | {"scheme": "int8", "size_ratio": 0.51, "tokens_per_second_ratio": 1.7}
    row |= {"speed": 1.7, "quality_ratio": 0.99, "quality_ratio_worst": 0.94, **int8}
    path.write_text(json.dumps({"target": "hopper", "floor": 0.9, "rows": [plain, row]}))
    return path


def comparison(path: Path, word: str, revision: str = REVISION, **student: object) -> Path:
    """A comparison of a teacher with something of an eighth of its size, thrice as fast."""
    found = content()
    teacher = found["models"]["teacher"] | {"size_bytes": SIZE, "revision": revision}
    small = {"size_bytes": SIZE // 8, "folder": "runs/student/checkpoint"}
    found["models"] = {"teacher": teacher, "student": teacher | small | student}
    found["decode_ratio"] = 3.0
    found["verdict"] = {
        "overall": {"word": word, "more_rows": 300 if word == "not enough data" else 0},
        "worst_slice": None,
    }
    path.write_text(json.dumps(found))
    return path


def with_cascade(path: Path) -> Path:
    """The same comparison with thresholds at which the teacher helps."""
    chosen = {"threshold": -0.0213, "escalated": 0.25, "quality": 0.98, "low": -0.04, "cost": 1}
    streams = chosen | {"threshold": -0.03}
    cascade = {"mean_logprob": {"chosen": chosen}, "first_tokens": {"chosen": streams}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cascade": cascade}))
    return path


def plan(path: Path, *, cost: float | None, low: float) -> Path:
    """A plan with a pilot that predicts the metric."""
    made = Plan(
        *(1, 1, 0, 1, 1, 1, 1.0, 1),  # rows to tokens
        student_parameters=1_000,
        teacher_parameters=10_000,
        tokens_per_second=1.0,
        preparing_seconds=1.0,
        training_seconds=1.0,
        baseline_seconds=1.0,
        hours=9.0,
        cost=cost,
        peak_memory_bytes=1,
        disk_bytes=1,
    )
    metric = Prediction(low + 0.05, low, low + 0.1)
    pilot = Pilot([], 0.05, 1.0, Prediction(0.1, 0.1, 0.1), metric)
    path.write_text(json.dumps({**asdict(made), "pilot": asdict(pilot)}))
    return path


def test_a_matrix_replaces_what_is_assumed_of_quantizing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, config, "--matrix", str(matrix(tmp_path / "matrix.json")))

    source = f"{tmp_path}/matrix.json, int8 on hopper"
    assert found["assumptions"]["quantized_speed"] == {"value": 1.7, "from": source}
    assert found["assumptions"]["chance_of_quantized"]["value"] == 1.0
    assert found["assumptions"]["teacher_gb"]["value"] == 16
    path = path_of(found, "quantize")
    assert (path["quality"]["low"], path["quality"]["high"]) == (0.94, 0.99)
    assert path["quality"]["source"] == source
    assert path["next"] == f"retort quantize TEACHER --scheme int8 --out bundle -c {config}"
    assert path_of(found, "distill")["quality"] is None


def test_a_matrix_in_which_nothing_keeps_the_floor_rules_quantizing_out(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = matrix(tmp_path / "matrix.json", quality_ratio_worst=0.5)

    found = told(capsys, config, "--matrix", str(bad))

    assert found["assumptions"]["chance_of_quantized"]["value"] == 0.0
    assert "does not earn" in path_of(found, "quantize")["refusal"]


def test_a_matrix_without_held_out_rows_says_nothing_of_quality(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unmeasured = matrix(tmp_path / "matrix.json", exact_match=None)

    found = told(capsys, config, "--matrix", str(unmeasured))

    assert found["assumptions"]["chance_of_quantized"]["from"] == "assumed"
    assert path_of(found, "quantize")["quality"] is None


@pytest.mark.parametrize(
    ("word", "chance", "command"),
    [
        ("non-inferior", 1.0, "retort rollout start runs/student/checkpoint --route support"),
        ("inferior", 0.0, "retort distill plan -c run.toml --pilot"),
        ("not enough data", 0.3, "retort compare models/one runs/student/checkpoint --rows 500"),
    ],
)
def test_a_verdict_decides_what_a_student_is_worth(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    word: str,
    chance: float,
    command: str,
) -> None:
    compared = comparison(tmp_path / "compare.json", word)

    found = told(capsys, config, "--compare", str(compared))

    path = path_of(found, "distill")
    assert path["chance"] == chance
    assert path["next"].startswith(command)
    assert found["assumptions"]["student_speed"] == {"value": 3.0, "from": str(compared)}
    assert 0.7 < path["quality"]["low"] < 0.85 < path["quality"]["high"] < 0.95
    assert word in path["quality"]["what"]
    assert path_of(found, "both")["quality"] is None


def test_a_cascade_makes_an_inferior_student_worth_what_its_teacher_leaves_of_it(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = comparison(tmp_path / "compare.json", "inferior")
    alone = path_of(told(capsys, config, "--compare", str(path)), "distill")
    with_cascade(path)

    found = told(capsys, config, "--compare", str(path))

    with_net, now = path_of(found, "distill"), path_of(found, "none")
    written = json.loads(path.read_text())
    written["verdict"]["worst_slice"] = {"word": "inferior", "more_rows": 0}
    path.write_text(json.dumps(written))
    in_doubt = path_of(told(capsys, config, "--compare", str(path)), "distill")
    assert in_doubt["chance"] == 0.3
    assert (alone["chance"], with_net["chance"]) == (0.0, 1.0)
    assert found["assumptions"]["escalated_share"] == {"value": 0.25, "from": f"{path}, cascade"}
    assert alone["gpus"] + now["gpus"] / 4 <= with_net["gpus"] <= alone["gpus"] + now["gpus"]
    left = now["monthly_cost"] - with_net["monthly_cost"]
    assert with_net["monthly_saving"] == pytest.approx(left)
    assert (with_net["quality"]["low"], with_net["quality"]["high"]) == (0.96, 0.98)
    assert (
        "threshold = -0.0213, stream_threshold = -0.03 } in [gateway.routes.support]"
        in with_net["next"]
    )


def test_a_bundle_is_compared_as_what_it_was_made_of(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_teacher = {"scheme": "int8", "parent_revision": REVISION}
    of_student = {"scheme": "int8", "parent_revision": "student", "folder": "bundle"}
    first = comparison(tmp_path / "one.json", "non-inferior", **of_teacher)
    last = comparison(tmp_path / "two.json", "non-inferior", **of_student)

    found = told(capsys, config, "--compare", str(first), "--compare", str(last))

    assert found["assumptions"]["quantized_size"]["value"] == 0.125
    assert found["assumptions"]["final_speed"]["from"] == str(last)
    assert path_of(found, "quantize")["next"].startswith("retort rollout start runs/student")
    assert path_of(found, "both")["next"].startswith("retort rollout start bundle")
    assert path_of(found, "distill")["quality"] is None


@pytest.mark.parametrize("unsized", ["teacher", "student"])
def test_a_comparison_without_sizes_leaves_them_assumed(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], unsized: str
) -> None:
    compared = comparison(tmp_path / "compare.json", "non-inferior")
    written = json.loads(compared.read_text())
    written["models"][unsized]["size_bytes"] = 0
    compared.write_text(json.dumps(written))

    found = told(capsys, config, "--compare", str(compared))

    assert found["assumptions"]["student_size"]["from"] == "assumed"
    assert found["assumptions"]["student_speed"]["from"] == str(compared)
    assert path_of(found, "distill")["chance"] == 1.0
    assert f"no size of its {unsized}" in found["warnings"][-1]


@pytest.mark.parametrize("is_student_last", [False, True])
def test_a_student_and_what_is_quantized_of_it_have_chances_of_their_own(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, is_student_last: bool
) -> None:
    of_student = {"scheme": "int8", "parent_revision": "student", "folder": "bundle"}
    good = comparison(tmp_path / "student.json", "non-inferior")
    bad = comparison(tmp_path / "bundle.json", "inferior", **of_student)
    first, last = (bad, good) if is_student_last else (good, bad)

    found = told(capsys, config, "--compare", str(first), "--compare", str(last))

    assert path_of(found, "distill")["chance"] == 1.0
    assert path_of(found, "both")["chance"] == 0.0
    assert found["assumptions"]["final_chance_in_broad"]["from"] == str(bad)


def test_a_student_that_became_good_enough_alone_needs_no_teacher_beside_it(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = with_cascade(comparison(tmp_path / "old.json", "inferior"))
    new = comparison(tmp_path / "new.json", "non-inferior")

    found = told(capsys, config, "--compare", str(old), "--compare", str(new))

    assert found["assumptions"]["escalated_share"]["value"] == 0.0
    assert path_of(found, "distill")["chance"] == 1.0


def test_a_teacher_beside_a_student_is_not_one_beside_what_is_quantized_of_it(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_student = {"scheme": "int8", "parent_revision": "student", "folder": "bundle"}
    student = with_cascade(comparison(tmp_path / "student.json", "inferior"))
    bundle = comparison(tmp_path / "bundle.json", "non-inferior", **of_student)

    unmeasured = told(capsys, config, "--compare", str(student))
    found = told(capsys, config, "--compare", str(student), "--compare", str(bundle))

    shares = [
        each["assumptions"][name]["value"]
        for each in (unmeasured, found)
        for name in ("escalated_share", "final_escalated_share")
    ]
    assert shares == [0.25, 0.25, 0.25, 0.0]


def test_a_comparison_of_another_teacher_is_left_out(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = comparison(tmp_path / "compare.json", "non-inferior", revision="other")

    found = told(capsys, config, "--compare", str(other))

    assert (
        "is left out: its teacher is other, the log's answers are of rev" in found["warnings"][-1]
    )
    assert found["assumptions"]["student_speed"]["from"] == "assumed"


def test_a_pilot_says_how_likely_a_student_is(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = plan(tmp_path / "plan.json", cost=45.0, low=0.85)

    found = told(capsys, config, "--plan", str(planned))
    strict = told(capsys, config, "--plan", str(planned), "--set", "wished_quality=0.99")

    path = path_of(found, "distill")
    assert path["chance"] == pytest.approx(0.5)
    assert path_of(strict, "distill")["chance"] == pytest.approx(0.05)
    assert path["next"] == "retort distill -c run.toml"
    assert path["quality"]["low"] == 0.85
    assert found["assumptions"]["training_cost"] == {"value": 45.0, "from": str(planned)}
    assert found["assumptions"]["student_size"]["value"] == 0.1


def test_a_plan_without_a_price_leaves_the_cost_assumed(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, config, "--plan", str(plan(tmp_path / "plan.json", cost=None, low=0.5)))

    assert found["assumptions"]["training_cost"]["from"] == "assumed"
    assert "names no cost" in found["warnings"][-1]


def test_a_setting_goes_before_a_measurement(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--matrix", str(matrix(tmp_path / "matrix.json")), "--set", "quantized_speed=2")

    found = told(capsys, config, *words)

    assert found["assumptions"]["quantized_speed"] == {"value": 2.0, "from": "--set"}


def test_files_at_their_usual_places_are_read(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "matrix").mkdir()
    matrix(tmp_path / "matrix" / "matrix.json")
    monkeypatch.chdir(tmp_path)

    found = told(capsys, config)

    assert found["assumptions"]["quantized_speed"]["from"].startswith("matrix/matrix.json")


def test_the_size_of_a_teacher_is_that_of_its_weights(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.safetensors", "consolidated.safetensors"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(30_000_000_000)

    found = told(capsys, config, "--teacher", str(tmp_path))

    assert found["assumptions"]["teacher_gb"]["value"] == 30
    assert found["assumptions"]["teacher_tokens_per_second"]["value"] == 1340


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--compare", "{}", "models: Field required; make the file again"),
        ("--matrix", "[]", "make the file again"),
        ("--plan", "no JSON", "Invalid JSON"),
        ("--plan", None, "No such file"),
        ("--teacher", None, "no safetensors there"),
    ],
)
def test_a_file_that_is_no_measurement_is_named(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    text: str | None,
    said: str,
) -> None:
    path = tmp_path / "file.json"
    if text is not None:
        path.write_text(text)

    assert main(["advise", "-c", str(config), *LARGE, option, str(path)]) == 2

    found = capsys.readouterr().err
    assert str(path) in found
    assert said in found


@pytest.mark.parametrize(
    ("wish", "chance"), [(0.5, 0.95), (0.8, 0.95), (0.85, 0.725), (0.9, 0.5), (0.97, 0.05)]
)
def test_chances_lie_between_the_points_of_a_prediction(wish: float, chance: float) -> None:
    assert chance_of(wish, Range(low=0.8, median=0.9, high=0.95)) == pytest.approx(chance)
