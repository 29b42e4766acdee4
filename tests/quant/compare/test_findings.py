import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.compare.answers import NO_ROOM, Answer
from quant.compare.bootstrap import Span
from quant.compare.findings import WORST, Findings, Pair, document, judged
from quant.compare.forced import Forced
from quant.compare.report import TEXT, shortened, write_page
from quant.compare.slices import Slice
from quant.compare.verdict import Question

QUESTION = Question(0.05, Span(best=0.0))
ROWS = 200


def findings() -> Findings:
    """A student that is right but for the 30 rows of one tenant, where it says nothing useful."""
    random = np.random.default_rng(0)
    is_wrong = np.arange(ROWS) >= ROWS - 30
    pairs = []
    for row in range(ROWS):
        teacher = Answer(json.dumps({"n": row}), tuple(range(8)), "stop")
        student = Answer("I'm sorry <b>", (7,) * 40, "length") if is_wrong[row] else teacher
        pairs.append(Pair(f"x{row}", f"prompt {row} & more", student, teacher))
    is_right = (~is_wrong).astype(np.float64)
    kl = np.where(is_wrong, 2 + random.random(ROWS), 0.01)
    student_look, teacher_look = (
        Forced(values, is_right, np.ones(ROWS), np.full(ROWS, 8.0))
        for values in (kl, np.zeros(ROWS))
    )
    slices = [
        Slice("tenant", "large", np.arange(ROWS - 30)),
        Slice("tenant", "small", np.arange(ROWS - 30, ROWS)),
        Slice("rarity", "1 of 2: 0 to 1 nats", np.arange(100)),
        Slice("rarity", "2 of 2: 1 to 2 nats", np.arange(100, ROWS)),
    ]
    return Findings(pairs, is_right, np.ones(ROWS), student_look, teacher_look, slices)


def test_the_slice_where_the_student_fails_stands_first() -> None:
    found = document(findings(), QUESTION)

    names = [f"{row['kind']} {row['name']}" for row in found["slices"]]
    assert names[:2] == ["all rows", "tenant small"]
    worst = found["slices"][1]
    assert (worst["student"], worst["difference"], worst["word"]) == (0.0, -1.0, "inferior")
    assert found["verdict"]["overall"]["word"] == "inferior"
    assert found["verdict"]["worst_slice"]["slice"] == "tenant small"
    good = next(row for row in found["slices"] if row["name"] == "large")
    assert good["difference"] == 0.0
    assert good["worst"] == []


def test_the_worst_examples_are_those_that_surprise_the_student_most() -> None:
    one = findings()

    found = document(one, QUESTION)

    worst = found["slices"][0]["worst"]
    kls = [found["examples"][str(row)]["kl_nats"] for row in worst]
    assert len(worst) == WORST
    assert kls == sorted(kls, reverse=True)
    assert kls[-1] >= sorted(one.student_forced.kl_nats)[-WORST]
    first = found["examples"][str(worst[0])]
    assert first["exchange_id"] == f"x{worst[0]}"
    assert first["teacher"] == json.dumps({"n": worst[0]})
    assert first["student"] == "I'm sorry <b>"
    assert first["slices"] == ["tenant small", "rarity 2 of 2: 1 to 2 nats"]


def test_answers_are_measured_on_both_sides() -> None:
    found = document(findings(), QUESTION)["measures"]

    assert found["exact_match"] == pytest.approx(170 / 200)
    assert found["refusals"] == {"teacher": 0.0, "student": 0.15}
    assert found["repetitive"] == {"teacher": 0.0, "student": 0.15}
    assert found["cut_by_length"] == {"teacher": 0.0, "student": 0.15}
    assert found["length_ratio"] == pytest.approx((170 * 8 + 30 * 40) / (200 * 8))
    assert found["json"] == {"rows": 200, "student_valid": 0.85, "field_f1": 0.85}
    assert found["tool_calls"] == {"rows": 0, "equal": None, "student_without": None}
    assert found["teacher_forced"]["student"]["agreement"] == pytest.approx(0.85)


def test_a_prompt_without_room_is_an_empty_answer_and_counted() -> None:
    pair = Pair("x", "prompt", NO_ROOM, Answer("yes", (1,), "stop"))
    look = Forced(np.array([np.nan]), np.array([np.nan]), np.array([np.nan]), np.array([1.0]))
    one = Findings([pair], np.zeros(1), np.ones(1), look, look, slices=[])

    found = document(one, QUESTION)

    assert found["measures"]["without_room"] == {"teacher": 0.0, "student": 1.0}
    assert found["verdict"]["worst_slice"] is None
    assert found["slices"][0]["worst"] == [0]


def test_a_judge_that_prefers_one_side_is_told_from_chance() -> None:
    sure = judged([1.0] * 60 + [-1.0] * 10 + [0.0] * 30 + [None] * 5, Question(0.05))
    unsure = judged([1.0, -1.0, 0.0], Question(0.05))

    assert (sure["rows"], sure["unread"]) == (100, 5)
    assert (sure["student_better"], sure["teacher_better"]) == (0.6, 0.1)
    assert sure["difference"] == 0.5
    assert 0 < sure["low"] < 0.5 < sure["high"]
    assert unsure["low"] < 0 < unsure["high"]
    assert judged([None], Question(0.05))["difference"] is None


def test_long_texts_are_shown_by_their_ends() -> None:
    text = "a" * 2000 + "z"

    found = shortened(text)

    assert shortened("short") == "short"
    assert found.startswith("a" * (TEXT // 2))
    assert found.endswith("z")
    assert "[... 1,401 characters ...]" in found


def content() -> dict[str, Any]:
    model = {
        "folder": "models/one",
        "revision": "r",
        "scheme": None,
        "parent_revision": None,
        "size_bytes": 10,
        "memory_bytes": 10,
        "decode_tokens_per_second": 1.0,
        "prefill_tokens_per_second": 2.0,
    }
    log = {
        "rows": ROWS,
        "heldout_prompts": 300,
        "without_room": 2,
        "heldout_fraction": 0.05,
        "teacher_revision": "r",
        "rows_digest": "d" * 64,
        "snapshot": {"digest": "e" * 64},
    }
    return {
        "models": {"teacher": model, "student": model},
        "decode_ratio": 1.0,
        "prefill_ratio": 1.0,
        "log": log,
        "metric": "exact_match",
        **document(findings(), QUESTION),
        "cascade": None,
        "cascade_config": [],
        "judge": {"model": "j"} | judged([1.0, 0.0, None], Question(0.05)),
    }


def test_the_page_needs_nothing_beside_it_and_escapes_texts(tmp_path: Path) -> None:
    write_page(content(), tmp_path / "compare.html")

    page = (tmp_path / "compare.html").read_text()
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "I&#39;m sorry &lt;b&gt;" in page
    assert "sorry <b>" not in page
    assert "tenant small" in page
    assert "In 1 rows it said none" in page
    assert "2 fill the context of both models and are left out" in page
    assert [path.name for path in tmp_path.iterdir()] == ["compare.html"]
