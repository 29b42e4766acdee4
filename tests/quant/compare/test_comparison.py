"""What comes of both models' answers, with answers and speeds in place of engines."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capture.log import Log
from quant.compare.answers import Answer
from quant.compare.comparison import Place, Wish, compare_models
from quant.compare.forced import Forced
from quant.compare.judging import JudgeSpec
from quant.compare.serving import Side
from quant.config import QuantConfig
from quant.screen import Screen
from quant.speed import Speed
from tests.support.answered_rows import answer, write_log
from tests.support.fake_judge import NAME, likes_long
from tests.support.json_server import Asked, Reply, json_server, refusal
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import Dataset
from trainer.errors import EndpointError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model beside a log of its answers."""
    folder = tmp_path_factory.mktemp("comparison")
    model = make_tiny_model(folder / "model")
    write_log(answer(model, 60, tokens=3), folder / "log", folder / "spool")
    return model


@pytest.fixture
def place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr("quant.compare.comparison.measure", measured)
    config = QuantConfig(heldout_fraction=0.9)
    with Screen.opened() as screen:
        yield Place(Log(model.parent / "log"), config, tmp_path / "out", screen)


def measured(
    folders: Mapping[str, Path], dataset: Dataset, *_args: object, **_options: object
) -> dict[str, Side]:
    """Answers that tell who gave them."""
    ones = np.ones(len(dataset))
    return {
        name: Side(
            folder,
            [Answer(f"{name} {row}", (row,), "stop") for row in range(len(dataset))],
            Forced(0 * ones, ones, ones, ones),
            Speed((1.0,), (1.0,), 1),
        )
        for name, folder in folders.items()
    }


def written(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.out / "compare.json").read_text())
    return found


def test_what_was_measured_outlives_a_judge_that_goes_away(model: Path, place: Place) -> None:
    def respond(asked: Asked) -> Reply:
        return likes_long(asked) if asked.body is None else refusal(418)

    with json_server(respond) as url, pytest.raises(EndpointError, match="418"):
        compare_models(model, model, Wish(20, 0.05, "exact_match", JudgeSpec(url, NAME)), place)

    assert written(place)["slices"][0]["rows"] == 20
    assert written(place)["judge"] is None


def test_what_a_judge_says_is_written_with_the_rest(model: Path, place: Place) -> None:
    with json_server(likes_long) as url:
        wish = Wish(20, 0.05, "exact_match", JudgeSpec(url, NAME))
        content = compare_models(model, model, wish, place)

    assert content["judge"]["rows"] == 20
    assert content["log"]["without_room"] == 0
    assert content == written(place)
