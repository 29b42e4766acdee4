import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.test_course import QUALITY, point
from trainer.baseline import Baseline
from trainer.report import verdict, write_report

GOOD = replace(QUALITY, metric=0.8, kl_to_teacher_nats=0.1, metric_rows=1000)


def metrics(ours: Any, theirs: Any | None) -> dict[str, Any]:
    points = [asdict(point(step, step / 100, 1 / step)) for step in (10, 20)]
    baseline = None if theirs is None else asdict(Baseline(20, 9.0, 20, theirs, []))
    return {
        "loss": "forward_kl",
        "metric": "json_f1",
        "steps": 20,
        "rows": 500,
        "duplicates_dropped": 7,
        "flagged_rows": 3,
        "seconds": 10.0,
        "tokens_per_second": 100.0,
        "student_parameters": 10,
        "teacher_parameters": 40,
        "heldout_before_training": asdict(QUALITY),
        "heldout": asdict(ours),
        "best_step": 20,
        "points": points,
        "baseline": baseline and {**baseline, "points": points},
        "rollouts": None,
        "retokenized": None,
        "stopped": None,
        "snapshot": {"digest": "<b>abc</b>"},
    }


@pytest.mark.parametrize(
    ("exact", "kl", "words"),
    [
        (0.6, 0.2, "helped:"),
        (0.79, 0.2, "not surely to better answers"),
        (0.8, 0.05, "did not help"),
        (0.95, 0.2, "did not help"),
    ],
)
def test_it_says_plainly_whether_the_distribution_helped(
    exact: float, kl: float, words: str
) -> None:
    theirs = replace(GOOD, metric=exact, kl_to_teacher_nats=kl)

    assert words in verdict(metrics(GOOD, theirs))


def test_without_a_baseline_it_claims_nothing() -> None:
    assert "not known" in verdict(metrics(GOOD, None))
    assert "as asked" in verdict({**metrics(GOOD, None), "loss": "behaviour_cloning"})


@pytest.mark.parametrize("theirs", [None, GOOD])
def test_the_page_needs_nothing_beside_it(tmp_path: Path, theirs: Any) -> None:
    path = tmp_path / "report.html"
    write_report(metrics(GOOD, theirs), path)
    text = path.read_text()

    assert text.count("<svg") == 4
    assert "<b>abc</b>" not in text
    assert not re.search(r"<(script|link|img|iframe)\b", text)
    assert list(tmp_path.iterdir()) == [path]
