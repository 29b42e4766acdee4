import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.support.answered_rows import answer
from tests.support.distill_run import distill, make_home, write_config
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import from_table
from trainer.errors import TooShortError
from trainer.pilot import levels, part


def test_short_runs_cost_a_twentieth_of_a_long_one() -> None:
    planned = levels(100_000)

    assert sum(planned) == pytest.approx(5000, rel=0.01)
    assert [after / before for before, after in pairwise(planned)] == (
        pytest.approx([2, 2, 2], rel=0.01)
    )


def test_a_run_too_short_for_a_pilot_is_told() -> None:
    assert sum(levels(300)) == 150
    with pytest.raises(TooShortError, match="a pilot takes 150 steps and the whole run 299"):
        levels(299)


def test_a_larger_part_holds_a_smaller_one(tmp_path: Path) -> None:
    teacher = make_tiny_model(tmp_path / "teacher")
    dataset = from_table(answer(teacher, 60), teacher)
    rows = np.arange(60)
    parts = [set(part(dataset, rows, share).tolist()) for share in (0.0, 0.1, 0.4, 1.0)]

    assert [len(one) for one in parts[::3]] == [1, 60]
    assert all(one <= other for one, other in pairwise(parts))
    assert 10 < len(parts[2]) < 40


def test_plan_pilot_says_what_the_whole_run_would_reach(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    result = distill(write_config(home, steps="300", learning_rate="1e-3"), "plan", "--pilot")
    pilot = json.loads(result.stdout)["pilot"]

    assert [trial["steps"] for trial in pilot["trials"]] == [10, 20, 40, 80]
    assert pilot["price"] == 0.5
    assert [trial["prompts"] for trial in pilot["trials"]] == sorted(
        trial["prompts"] for trial in pilot["trials"]
    )
    kl = pilot["kl_to_teacher_nats"]
    assert 0 < kl["low"] <= kl["median"] <= kl["high"]
    assert 0 <= pilot["metric"]["low"] <= pilot["metric"]["high"] <= 1
    assert not (home / "out").exists()


def test_a_pilot_is_measured_on_the_rows_that_the_whole_run_will_be(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    idle = write_config(home, steps="300", learning_rate="1e-12", baseline="false")
    pilot = json.loads(distill(idle, "plan", "--pilot").stdout)["pilot"]
    whole = json.loads(distill(idle).stdout)

    reached = [trial["kl_to_teacher_nats"] for trial in pilot["trials"]]
    before = whole["heldout_before_training"]["kl_to_teacher_nats"]
    assert reached == pytest.approx([before] * 4, rel=1e-4)
