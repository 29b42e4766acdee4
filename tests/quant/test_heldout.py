import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from quant.errors import CompressionError
from quant.heldout import Figures, HeldOut, check_floor, compared, slices_of, worst_slice
from quant.screen import Screen
from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import from_table
from trainer.evaluation import Quality

GOOD = Quality(0.1, 0.9, 0.8, 0.8, 100, 0.2, 0.9, 1.0, 0.01, 100, 400)


def test_a_bundle_is_as_good_as_its_worst_slice() -> None:
    before = {"all": GOOD, "common": GOOD, "rare": replace(GOOD, exact_match=0.5)}
    after = {
        "all": replace(GOOD, exact_match=0.76),
        "common": GOOD,
        "rare": replace(GOOD, exact_match=0.3),
    }

    figures = compared(before, after)

    assert math.isclose(figures["quality_ratio"], 0.95)
    assert math.isclose(figures["quality_ratio_rare"], 0.6)
    assert figures["unquantized_exact_match"] == 0.8
    worst = worst_slice(figures)
    assert worst is not None
    assert worst[0] == "rare"
    assert math.isclose(worst[1], 0.6)


def test_a_slice_with_few_right_answers_says_nothing_of_what_is_kept() -> None:
    none = replace(GOOD, exact_match=0.19)

    figures = compared({"all": GOOD, "rare": none}, {"all": GOOD, "rare": none})

    assert "quality_ratio_rare" not in figures
    assert worst_slice(figures) == ("all", 1.0)
    assert worst_slice({"kl_to_teacher_nats": 0.1}) is None


def test_a_prompt_that_is_asked_often_is_one_row(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    rows = answer(model, 11, tokens=2)
    often = pa.concat_tables([rows.slice(0, 1)] * 25)

    both = HeldOut.of(pa.concat_tables([often, rows.slice(1)]), model, 16)
    alone = HeldOut.of(often, model, 16)

    assert both is not None
    assert len(both.dataset) == len(both.sample.sequences) == 11
    assert alone is not None
    right = replace(GOOD, exact_match=1.0, rows=len(alone.dataset))
    assert "quality_ratio" not in compared({"all": right}, {"all": right})


def checked(figures: Figures, *, is_forced: bool = False) -> Figures:
    with Screen.opened() as screen:
        check_floor(figures, 0.9, "int8", screen, is_forced=is_forced)
    return figures


def test_a_floor_that_cannot_be_checked_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    few = replace(GOOD, exact_match=0.19)

    figures = checked(compared({"all": few}, {"all": replace(few, exact_match=0.0)}))

    words = " ".join(capsys.readouterr().err.split())
    assert "warning: the model got 19 of 100 held-out rows right, under 20: " in words
    assert "`floor` in [quant] was not checked" in words
    assert not [name for name in figures if name.startswith("quality_ratio")]


def test_what_keeps_too_little_is_refused_or_marked(capsys: pytest.CaptureFixture[str]) -> None:
    poor = {"quality_ratio": 0.95, "quality_ratio_rare": 0.5}

    with pytest.raises(CompressionError, match=r"int8 keeps 50\.0% .* slice 'rare'"):
        checked(dict(poor))

    assert checked(dict(poor), is_forced=True) == poor | {"forced": 1.0}
    assert checked({"quality_ratio": 0.9}) == {"quality_ratio": 0.9}
    assert checked({}) == {}  # no held-out rows: told where that is found out
    assert "warning" not in capsys.readouterr().err


def test_slices_cover_the_rows_and_small_ones_are_left_out(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    large = from_table(answer(model, 120, tokens=2), model)
    small = from_table(answer(model, 60, tokens=2), model)

    slices = slices_of(large)

    assert {name: len(rows) for name, rows in slices.items()} == {
        "all": 120,
        "common": 96,
        "rare": 24,
        "short": 96,
        "long": 24,
    }
    assert set(slices["common"]) | set(slices["rare"]) == set(range(120))
    longest = large.lengths[slices["long"]].min()
    assert longest >= large.lengths[slices["short"]].max()
    assert set(slices_of(small)) == {"all", "common", "short"}
    assert np.array_equal(slices_of(small)["all"], np.arange(60))
