"""Runs that are interrupted while their log grows, or before they are started with other settings.

``KilledError`` is raised where a signal would strike; ``test_progress`` really kills processes.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from capture.revision import model_revision
from tests.support.answered_rows import answer, write_log
from tests.support.distill_run import make_home, write_config
from tests.support.tiny_model import make_tiny_model
from trainer import distillation, training
from trainer.begun import RUN
from trainer.config import TrainerConfig, load
from trainer.errors import DivergedError
from trainer.follow import follow
from trainer.loop import Step
from trainer.part import begin, find, prepare
from trainer.results import Metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
SETTINGS = {"baseline": "false", "student": '"teacher"', "steps": "8", "eval_every": "4"}
DIES_AFTER = 6


class KilledError(Exception):
    pass


class Watcher:
    """Notes which step comes first, and may end the run after one."""

    def __init__(self, last: int | None = None) -> None:
        self.last = last
        self.steps: list[int] = []

    def say(self, _words: str) -> None: ...

    def expect(self, steps: int) -> None: ...

    def step(self, step: Step) -> None:
        self.steps.append(step.number)
        if step.number == self.last:
            raise KilledError


@pytest.fixture(autouse=True)
def _saves_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path)


def grow(home: Path, num_rows: int, name: str) -> None:
    """Append answers to the log under other ids."""
    table = answer(home / "teacher", num_rows, seed=7)
    ids = [f"{name}{number}" for number in range(num_rows)]
    write_log(table.set_column(0, table.schema.field(0), [ids]), home / "log", home / name)


def run(config: TrainerConfig, last: int | None = None) -> tuple[Metrics | None, list[int], str]:
    """Start a run, or go on with it; what came of it, which steps it did, what it said."""
    watcher = Watcher(last)
    said: list[str] = []
    job = prepare(config, watcher.say, snapshot=begin(config, said.append))
    try:
        metrics = job.run(watcher)
    except KilledError:
        metrics = None
    return metrics, watcher.steps, " ".join(said)


def weights(config: TrainerConfig) -> Iterator[torch.Tensor]:
    yield from load_file(config.out / "checkpoint" / "model.safetensors").values()


def test_a_run_goes_on_with_the_rows_it_began_with_although_the_log_has_grown(home: Path) -> None:
    whole, killed = (load(write_config(home, out=f'"{n}"', **SETTINGS)) for n in ("a", "b"))
    run(whole)
    run(killed, last=DIES_AFTER)
    grow(home, 9, "new")
    metrics, steps, said = run(killed)

    assert steps == [DIES_AFTER, 7, 8]  # it died before that step was saved
    assert "goes on with the rows of then, and the next run reads what is new" in said
    assert metrics is not None
    assert metrics.snapshot["num_rows"] == 40
    assert all(map(torch.equal, weights(whole), weights(killed)))
    again, steps, said = run(killed)
    assert again is not None
    assert (again.snapshot["num_rows"], steps[0], said) == (49, 1, "")


def test_a_run_whose_rows_are_gone_begins_anew_and_says_so(home: Path) -> None:
    config = load(write_config(home, **SETTINGS))
    run(config, last=DIES_AFTER)
    noted = config.out / "progress" / RUN
    digest = find(config).digest
    noted.write_text(noted.read_text().replace(digest, "0" * 64))
    metrics, steps, said = run(config)

    assert metrics is not None
    assert metrics.snapshot["digest"] == digest
    assert steps[0] == DIES_AFTER  # the newest rows are the same after all
    assert "begins anew" in said
    assert "rows have changed" in said


def test_progress_of_other_settings_is_set_aside_and_found_again(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load(write_config(home, **SETTINGS))
    other = config.model_copy(update={"batch_tokens": 128})
    run(config, last=DIES_AFTER)
    run(other, last=3)
    (aside,) = config.out.glob("progress-of-*")

    assert f"which is now in {aside}" in caplog.text
    grow(home, 9, "new")
    assert run(config)[1][0] == DIES_AFTER
    assert run(other)[1][0] == 3
    assert not list(config.out.glob("progress*"))


def test_what_is_set_aside_of_a_student_that_was_replaced_keeps_no_run_on_its_rows(
    home: Path,
) -> None:
    student = make_tiny_model(home / "student", hidden_size=128, seed=1)
    config = load(write_config(home, **{**SETTINGS, "student": '"student"'}))
    run(config, last=DIES_AFTER)
    make_tiny_model(student, hidden_size=128, seed=2)
    run(config)
    grow(home, 9, "new")
    metrics, steps, _ = run(config)

    assert list(config.out.glob("progress-of-*"))
    assert metrics is not None
    assert (metrics.snapshot["num_rows"], steps[0]) == (49, 1)


def test_a_student_is_there_although_its_baseline_diverges(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object) -> None:
        raise DivergedError("no number")

    config = load(write_config(home, **{**SETTINGS, "baseline": "true"}))
    monkeypatch.setattr(distillation, "clone_behaviour", diverge)
    with pytest.raises(DivergedError):
        run(config)

    assert model_revision(config.out / "checkpoint") != model_revision(home / "teacher")
    assert (config.out / "tensorboard").is_dir()


def test_what_is_killed_in_its_baseline_is_finished_by_the_next_call_to_follow(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strike(*_: object) -> None:
        raise KilledError

    config = load(write_config(home, **{**SETTINGS, "baseline": "true"}))
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "clone_behaviour", strike)
        with pytest.raises(KilledError):
            next(follow(config, 0.2))
    grow(home, 12, "new")
    runs = follow(config, 0.2)
    first = next(runs)
    checkpoint = model_revision(config.out / "checkpoint")
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "clone_behaviour", strike)
        with pytest.raises(KilledError):
            next(runs)

    assert first.snapshot["num_rows"] == 40
    assert first.baseline is not None
    assert model_revision(config.out / "checkpoint") == checkpoint
    assert next(follow(config, 0.2)).snapshot["num_rows"] == 52
    assert model_revision(config.out / "checkpoint") != checkpoint
