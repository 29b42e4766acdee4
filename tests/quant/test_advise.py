"""``retort advise`` on constructed logs for which the right answer is known."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from capture.commit import Committer
from gateway.__main__ import main
from tests.support.log_folders import config_in, spool_logits
from tests.support.log_rows import logit_row
from tests.support.traffic_log import BROAD, log_of, requests

LARGE = ("--set", "teacher_gb=140", "--set", "requests_per_month=20e6")  # of 70 billion weights
SMALL_ROWS = 50
WORDY_ROWS = 1_200  # enough words to tell how narrow the domain is


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return log_of(tmp_path_factory.mktemp("narrow"), *requests(WORDY_ROWS, 10.0))


@pytest.fixture(scope="module")
def broad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return log_of(tmp_path_factory.mktemp("broad"), *requests(WORDY_ROWS, 10.0, words=BROAD))


def told(capsys: pytest.CaptureFixture[str], config: Path, *words: str) -> dict[str, Any]:
    """What the command says as JSON."""
    assert main(["advise", "-c", str(config), *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    """What the command says on its way out."""
    assert main(["advise", *words]) == code
    return " ".join(capsys.readouterr().err.split())


def path_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    path: dict[str, Any] = next(path for path in found["paths"] if path["name"] == name)
    return path


def test_a_small_traffic_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = log_of(tmp_path, *requests(SMALL_ROWS, 10.0))

    found = told(capsys, config)

    assert found["recommended"] == "none"
    assert found["next"] == ""
    assert found["assumptions"]["requests_per_month"]["value"] == pytest.approx(152.2, rel=1e-3)
    assert path_of(found, "quantize")["gpus"] == path_of(found, "none")["gpus"] == 1
    assert all("does not earn" in path["refusal"] for path in found["paths"][1:])
    assert found["turning_points"][0]["recommended"] != "none"
    assert found["turning_points"][0]["requests_per_month"] > 10_000


def test_a_large_traffic_that_needs_relief_now_is_quantized(
    narrow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, narrow, *LARGE, "--set", "needed_within_days=7")

    assert found["recommended"] == "quantize"
    assert path_of(found, "distill")["refusal"] == "it takes 20 days and is needed within 7"
    assert "once the need is met" in " ".join(found["reasons"])
    assert found["next"].startswith("retort quantize matrix ")


def test_a_large_broad_traffic_is_quantized_where_students_hardly_succeed(
    broad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(
        capsys, broad, *LARGE, "--set", "chance_in_broad=0.02", "--set", "horizon_months=3"
    )

    assert found["traffic"]["is_narrow"] is False
    assert found["recommended"] == "quantize"


def test_a_large_narrow_traffic_is_quantized_and_then_distilled(
    narrow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, narrow, *LARGE)

    assert found["traffic"]["is_narrow"] is True
    assert found["recommended"] == "both"
    both = path_of(found, "both")
    assert both["net"] > max(path_of(found, name)["net"] for name in ("quantize", "distill"))
    assert both["chance"] == found["assumptions"]["chance_in_narrow"]["value"]


@pytest.mark.parametrize("setting", ["quantized_speed=0.7", "chance_of_quantized=0"])
def test_what_saves_nothing_is_not_the_first_step_of_both(
    narrow: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    first = path_of(told(capsys, narrow, *LARGE), "both")["next"]
    other = path_of(told(capsys, narrow, *LARGE, "--set", setting), "both")["next"]

    assert first.startswith("retort quantize matrix ")
    assert other.startswith("retort distill plan")


def test_a_teacher_too_big_for_any_server_is_distilled(
    narrow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("teacher_gb=1400", "student_size=0.03", "student_speed=30", "requests_per_month=1e6")

    found = told(capsys, narrow, *(each for word in words for each in ("--set", word)))

    assert found["recommended"] == "distill"
    assert "its weights take 12 GPUs" in path_of(found, "quantize")["refusal"]
    assert found["next"].startswith("retort distill plan")


def test_a_teacher_paid_by_the_token_is_distilled_and_never_quantized(
    narrow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = (
        "--set",
        "price_per_million_prompt_tokens=3",
        "--set",
        "price_per_million_completion_tokens=15",
    )

    found = told(capsys, narrow, *prices, "--set", "requests_per_month=1e6")

    assert path_of(found, "none")["monthly_cost"] == pytest.approx(2000 * 3 + 500 * 15)
    assert "paid by the token" in path_of(found, "quantize")["refusal"]
    assert found["recommended"] == "distill"


def test_the_tables_show_every_assumption_and_where_it_is_from(
    narrow: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "220")

    assert main(["advise", "-c", str(narrow), *LARGE]) == 0

    said = capsys.readouterr().out
    found = told(capsys, narrow, *LARGE)
    assert all(name in said for name in found["assumptions"])
    assert "not measured" in said
    assert "Recommended: both" in said
    assert found["assumptions"]["teacher_gb"] == {"value": 140, "from": "--set"}
    assert found["assumptions"]["gpu_memory_gb"]["from"] == "assumed"
    assert found["assumptions"]["completion_tokens"]["from"].startswith("log, 1,200 requests")
    assert all(path["quality"] is None for path in found["paths"])


def test_a_log_without_traffic_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = log_of(tmp_path / "empty")
    shadows = [replace(row, role="shadow") for row in requests(3, 1.0)]
    imports = [replace(row, capture="import") for row in requests(3, 1.0, route="other")]
    unused = log_of(tmp_path / "unused", *shadows, *imports)

    for config in (empty, unused):
        said = refused(capsys, 1, "-c", str(config))
        assert "no answered request in the log" in said


def test_routes_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = log_of(tmp_path, *requests(40, 2.0), *requests(20, 2.0, route="search"))

    assert "support, search: choose one by --route" in refused(capsys, 2, "-c", str(config))
    said = refused(capsys, 2, "-c", str(config), "--route", "shop")
    assert "--route shop: no answered request of it; known: support, search" in said
    assert told(capsys, config, "--route", "search")["traffic"]["requests"] == 20


def test_a_short_log_says_nothing_of_a_month(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = log_of(tmp_path, *requests(100, 0.01))

    said = refused(capsys, 1, "-c", str(config))

    assert "span 864 seconds" in said
    assert "--set requests_per_month=N" in said
    assert told(capsys, config, "--set", "requests_per_month=1000")["recommended"] == "none"


def test_tokens_that_no_engine_counted_are_taken_from_the_distributions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [replace(row, prompt_tokens=None, completion_tokens=None) for row in requests(20, 2.0)]
    config = log_of(tmp_path, *rows)
    said = refused(capsys, 1, "-c", str(config))
    settings = config_in(tmp_path)
    spool_logits(settings, *(logit_row(row.exchange_id) for row in rows))
    Committer(settings).commit()

    found = told(capsys, config)

    assert "--set prompt_tokens=N" in said
    assert found["assumptions"]["prompt_tokens"]["value"] == 3
    assert found["assumptions"]["completion_tokens"]["value"] == 3


def test_means_over_few_of_the_requests_are_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = requests(20, 2.0)
    uncounted = [replace(row, prompt_tokens=None, completion_tokens=None) for row in rows[10:]]

    found = told(capsys, log_of(tmp_path, *rows[:10], *uncounted))

    assert found["assumptions"]["completion_tokens"]["value"] == 500
    assert "is known of 50% of the requests" in " ".join(found["warnings"])


def test_the_busiest_hour_and_repeated_requests_are_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calm = requests(100, 4.0)
    end = calm[-1].started_at
    rush = [
        replace(calm[0], exchange_id=f"rush{n}", started_at=end - timedelta(minutes=20, seconds=n))
        for n in range(100)
    ]
    found = told(capsys, log_of(tmp_path, *calm, *rush))

    seen = found["traffic"]
    assert seen["peak_over_mean"] == pytest.approx(96 * 101 / 200, rel=0.02)
    assert seen["repeated_share"] == pytest.approx(0.5)
    assert (seen["tasks"], seen["largest_tasks_share"]) == (1, 1.0)
    assert "too few words" in " ".join(found["warnings"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("gpu_price_per_hour", "expected NAME=VALUE"),
        ("gpu_price=2", "no assumption is called 'gpu_price'; did you mean 'gpu_price_per_hour'?"),
        ("horizon_months=long", "'long' is no number"),
        ("horizon_months=0", "horizon_months=0.0: input should be greater than 0"),
        ("horizon_months=nan", "horizon_months=nan: input should be a finite number"),
        ("chance_in_broad=1.5", "chance_in_broad=1.5: input should be less than or equal to 1"),
        ("teacher_gb=0", "--set: teacher_gb=0.0: input should be greater than 0"),
    ],
)
def test_a_wrong_assumption_is_named(
    narrow: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    assert said in refused(capsys, 2, "-c", str(narrow), "--set", word)


def test_an_assumption_set_twice_is_refused(
    narrow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = ("--set", "utilisation=0.5", "--set", "utilisation=0.6")

    assert "utilisation is set twice" in refused(capsys, 2, "-c", str(narrow), *twice)
