"""Runs that are killed in the middle: the next one ends with the weights of one that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from gateway.__main__ import main
from tests.support.answered_rows import answer, write_log
from tests.support.killable import wait_for
from tests.support.retort import RETORT
from tests.support.tiny_model import make_tiny_model
from trainer import course, progress, training
from trainer.loop import make_optimizer
from trainer.progress import STATE, Done, Progress

SETTINGS = """\
[trainer]
log = "log"
teacher = "teacher"
out = "{out}"
steps = 60
batch_tokens = 256
heldout_fraction = 0.3
baseline = false
"""
# A run that saves after every step and dwells a moment, so that it can be killed anywhere.
SLOW = """\
import sys, time
import trainer.training as training
training.SAVE_SECONDS = 0
observe = training.Board.flush
training.Board.flush = lambda board: (observe(board), time.sleep(0.05))
from gateway.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("progress")
    write_log(answer(make_tiny_model(home / "teacher"), 30), home / "log", home / "spool")
    return home


def config(home: Path, out: str) -> Path:
    path = home / f"{out}.toml"
    path.write_text(SETTINGS.format(out=out))
    return path


def weights(home: Path, out: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(home / out / "checkpoint" / "model.safetensors")
    return found


def steps_in(state: Path) -> int:
    """How far a saved run has come."""
    if not state.exists():
        return 0
    with safe_open(state, "pt") as file:
        return int(file.metadata()["steps"])


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_run_killed_twice_ends_with_the_same_weights(home: Path) -> None:
    subprocess.run([*RETORT, "distill", "-c", str(config(home, "whole"))], check=True)
    state = home / "killed" / "progress" / STATE
    command = [sys.executable, "-c", SLOW, "distill", "-c", str(config(home, "killed"))]
    steps = [0]
    for _ in range(2):
        process = subprocess.Popen(command)
        wait_for(lambda: steps_in(state) > steps[-1] + 2, 120)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        steps.append(steps_in(state))
    subprocess.run([*RETORT, "distill", "-c", str(config(home, "killed"))], check=True)

    expected, found = weights(home, "whole"), weights(home, "killed")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not state.exists()
    assert 0 < steps[1] < steps[2] < 60
    assert list((home / "killed" / "tensorboard").iterdir())


def saved(teacher: Path, folder: Path, run: str) -> Progress:
    student = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    found = Progress(folder, run)
    found.save(student, make_optimizer(student), Done(3, 30, 1.5))
    return found


def test_another_runs_progress_is_not_taken_up(home: Path, tmp_path: Path) -> None:
    saved(home / "teacher", tmp_path / "progress", "one")
    student = AutoModelForCausalLM.from_pretrained(home / "teacher", dtype=torch.float32)

    assert (
        Progress(tmp_path / "progress", "two").restore(student, make_optimizer(student)) == Done()
    )
    assert not (tmp_path / "progress").exists()


def test_what_is_torn_is_not_taken_up(home: Path, tmp_path: Path) -> None:
    one = saved(home / "teacher", tmp_path / "progress", "one")
    path = tmp_path / "progress" / STATE
    path.write_bytes(path.read_bytes()[:5000])
    student = AutoModelForCausalLM.from_pretrained(home / "teacher", dtype=torch.float32)

    assert one.restore(student, make_optimizer(student)) == Done()


def test_it_says_how_far_it_has_come(home: Path, tmp_path: Path) -> None:
    one = saved(home / "teacher", tmp_path / "progress", "one")
    student = AutoModelForCausalLM.from_pretrained(home / "teacher", dtype=torch.float32)

    assert one.restore(student, make_optimizer(student)) == Done(3, 30, 1.5)


@pytest.mark.parametrize(
    ("place", "name", "folder"),
    [
        (progress, "save_file", "progress"),
        (course, "save_file", "progress/course"),
        (PreTrainedModel, "save_pretrained", "progress/checkpoint"),
    ],
)
def test_a_full_disk_is_told_in_a_line_and_what_was_saved_stays(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: object,
    name: str,
    folder: str,
) -> None:
    out = f"full-{Path(folder).name}"
    state = home / out / "progress" / STATE
    found: list[bytes] = []
    write = getattr(place, name)

    def refuse(*given: object) -> None:
        if not state.exists():
            write(*given)
            return
        found.append(state.read_bytes())
        raise SafetensorError("IO Error: No space left on device (os error 28)")

    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    monkeypatch.setattr(place, name, refuse)

    assert main(["distill", "-c", str(config(home, out))]) == 1
    told = f"{home / out / folder}: cannot be written (IO Error: No space left"
    assert told in capsys.readouterr().err
    assert found == [state.read_bytes()]
