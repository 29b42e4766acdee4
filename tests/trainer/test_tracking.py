"""The curves of a run, told to trackers by accelerate's interface."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from capture.errors import ConfigError
from capture.revision import model_revision
from tests.support.distill_run import distill, make_home, write_config
from trainer.tracking import TRACKERS, check_installed, flat


class Notebook(GeneralTracker):
    """A tracker of accelerate's kind that keeps what it is told."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out, self.pages = out, list[tuple[str, Any]]()

    @property
    def tracker(self) -> list[tuple[str, Any]]:
        return self.pages

    def start(self) -> None:
        sys.stdout.write("a word to the person")
        self.pages.append(("start", self.out.name))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.pages.append(("configuration", values))

    def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
        self.pages.append((f"step {step}", values))

    def finish(self) -> None:
        self.pages.append(("finish", None))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("tracking"))


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch) -> list[Notebook]:
    opened: list[Notebook] = []

    def open_notebook(out: Path) -> Notebook:
        opened.append(Notebook(out))
        return opened[-1]

    monkeypatch.setitem(TRACKERS, "wandb", open_notebook)
    monkeypatch.setattr("trainer.launch.check_installed", lambda _names: None)
    return opened


def test_a_tracker_is_told_the_recipe_and_every_point_of_tensorboards_curves(
    home: Path, notebooks: list[Notebook]
) -> None:
    result = distill(write_config(home, out='"told"', trackers='["wandb"]', eval_every="4"))
    metrics = json.loads(result.stdout)  # what a tracker prints is not in between
    events = EventAccumulator(str(home / "told" / "tensorboard"))
    events.Reload()
    (notebook,) = notebooks  # the baseline's curves are drawn nowhere
    told = {
        (name, int(page.split()[1])): value
        for page, values in notebook.pages
        if page.startswith("step")
        for name, value in values.items()
    }
    drawn = {
        (name, event.step): event.value
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
    }

    assert told == pytest.approx(drawn)
    assert told["heldout/kl_to_teacher_nats", 4] == pytest.approx(
        metrics["points"][0]["quality"]["kl_to_teacher_nats"]
    )
    assert notebook.pages[0] == ("start", "told")
    configuration = notebook.pages[1][1]
    assert configuration["recipe.loss"] == "forward_kl"
    assert configuration["teacher_revision"] == model_revision(home / "teacher")
    assert notebook.pages[-1] == ("finish", None)


def test_a_run_that_fails_is_ended_there_too(home: Path, notebooks: list[Notebook]) -> None:
    wild = {"baseline": "false", "learning_rate": "1e30", "steps": "40", "warmup": "0"}
    with pytest.raises(Exception, match="lower learning_rate"):
        distill(write_config(home, out='"wild"', trackers='["wandb"]', **wild))
    assert notebooks[0].pages[-1] == ("finish", None)


def test_who_is_told_changes_no_weight(home: Path, notebooks: list[Notebook]) -> None:
    alone = {"baseline": "false", "eval_every": "12"}
    assert distill(write_config(home, out='"one"', trackers='["wandb"]', **alone)).exit_code == 0
    assert distill(write_config(home, out='"other"', **alone)).exit_code == 0
    one, other = (model_revision(home / name / "checkpoint") for name in ("one", "other"))
    assert one == other
    assert len(notebooks) == 1


def test_a_tracker_that_is_not_installed_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'no_such_tracker'.*pip install no_such_tracker"):
        check_installed(["json", "no_such_tracker"])


def test_an_unknown_tracker_is_a_mistake(home: Path) -> None:
    with pytest.raises(ConfigError, match="trackers"):
        distill(write_config(home, trackers='["carrier pigeon"]'))


def test_ours_are_of_accelerates_kind(tmp_path: Path) -> None:
    kinds = importlib.import_module("accelerate.tracking").LOGGER_TYPE_TO_CLASS
    for name, open_tracker in TRACKERS.items():
        assert isinstance(open_tracker(tmp_path), kinds[name])


def test_settings_are_told_by_their_dotted_names() -> None:
    recipe: dict[str, Any] = {
        "loss": "forward_kl",
        "cut": {"layers": 2, "heads": None},
        "sizes": [1, 2],
    }
    assert flat(recipe) == {
        "loss": "forward_kl",
        "cut.layers": 2,
        "cut.heads": None,
        "sizes": "[1, 2]",
    }
