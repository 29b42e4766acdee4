"""How far held-out prompts are from those that training may have seen."""

import json
from dataclasses import replace
from math import log
from pathlib import Path

import pytest

from capture.familiarity import Familiarity
from capture.log import Log
from quant.compare.distances import FILE, measure_distances
from quant.compare.rows import Choice, choose_rows
from tests.support.answered_rows import answer, write_log
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import is_heldout

FRACTION = 0.5


def test_prompts_are_measured_against_those_that_were_not_held_out(tmp_path: Path) -> None:
    teacher = make_tiny_model(tmp_path / "teacher")
    table = answer(teacher, 30, tokens=3)
    held_out = [is_heldout(ids, FRACTION) for ids in table["prompt_ids"].to_pylist()]
    # The training prompts are all the same; of the others one is too, and the rest are strange.
    usual = "where is my order"
    words = [f"{row:09}" if is_out else usual for row, is_out in enumerate(held_out)]
    like = held_out.index(True)
    words[like] = usual
    requests = [json.dumps({"messages": [{"role": "user", "content": each}]}) for each in words]
    write_log(table, tmp_path / "log", tmp_path / "spool", requests=requests)
    captured = Log(tmp_path / "log")
    rows = choose_rows(captured, teacher, teacher, Choice("true", 400, FRACTION))

    found = measure_distances(captured, rows, tmp_path)

    num_training = held_out.count(False)
    assert found is not None
    assert len(rows.training_ids) == num_training
    expected = [
        0.0 if each == f"x{like:04}" else log(num_training + 1) for each in rows.exchange_ids
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert Familiarity.load(tmp_path / FILE).num_prompts == num_training
    assert measure_distances(captured, replace(rows, training_ids=()), tmp_path) is None
