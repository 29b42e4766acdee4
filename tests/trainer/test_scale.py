"""A run in several processes is the run of one: the same losses, also after one was killed."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from capture.errors import ConfigError
from tests.support.answered_rows import answer, write_log
from tests.support.retort import RETORT
from tests.support.scaled import course, resumed
from tests.support.tiny_model import make_tiny_model
from trainer.config import TrainerConfig, load
from trainer.launch import launched
from trainer.manifest import read_manifest
from trainer.packing import endless_batches
from trainer.part import find, prepare
from trainer.scale import ALONE, divide

SETTINGS = """\
[trainer]
log = "log"
teacher = "teacher"
student = "student"
out = "{out}"
steps = 24
batch_tokens = 32
warmup = 4
learning_rate = 1e-3
heldout_fraction = 0.3
duplicates = "drop_near"
"""
FLOAT32 = Path(__file__).parents[1] / "support" / "float32"
PATHS = (str(FLOAT32), os.environ.get("PYTHONPATH", ""))
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, PATHS))}
NUM_REPEATED = 8
SCALE = """
[trainer.scale]
processes = 2
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("scale")
    rows = answer(make_tiny_model(home / "teacher"), 30)
    again = rows.slice(0, NUM_REPEATED)
    names = pa.array(f"y{number:04}" for number in range(NUM_REPEATED))
    rows = pa.concat_tables([rows, again.set_column(0, again.schema.field(0), names)])
    write_log(rows, home / "log", home / "spool")
    make_tiny_model(home / "student", seed=1)
    return home


def config(home: Path, out: str, more: str = "") -> Path:
    path = home / f"{out}.toml"
    (home / out).mkdir(exist_ok=True)
    path.write_text(SETTINGS.format(out=out) + more)
    return path


def in_processes(worker: str, path: Path) -> Any:
    """Let processes do something from ``tests.support.scaled``; what the first one returns."""
    program = "from tests.support.scaled import main; main()"
    command = [sys.executable, "-c", program, worker, str(path)]
    # Ray lets its workers stand back; beside other tests they would hardly get a turn.
    told = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**ENVIRONMENT, "RAY_worker_niceness": "0"}
    )
    return json.loads(told.stdout)


@pytest.fixture(scope="module")
def alone(home: Path, float32_products: None) -> tuple[TrainerConfig, Any]:  # noqa: ARG001
    """A run in this process, whose first half is saved."""
    settings = load(config(home, "both"))
    return settings, course(settings, ALONE, find(settings), settings.out / "alone")


@pytest.fixture(scope="module")
def beside(home: Path, alone: tuple[TrainerConfig, Any]) -> dict[str, Any]:
    """The same in two processes; they find what this one has saved."""
    assert alone
    found: dict[str, Any] = in_processes("both", config(home, "both", SCALE))
    return found


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["copies", "shares"])
def test_two_processes_have_the_losses_and_gradients_of_one(
    kind: str, alone: tuple[TrainerConfig, Any], beside: dict[str, Any]
) -> None:
    assert beside["processes"] == 2
    assert len(alone[1]) == 24
    np.testing.assert_allclose(beside[kind], alone[1], rtol=0, atol=1e-5)


def test_some_batch_leaves_a_process_without_a_row(alone: tuple[TrainerConfig, Any]) -> None:
    settings, _ = alone
    run = prepare(settings, print)
    lengths = run.material.dataset.lengths[run.material.train_rows]
    batches = endless_batches(lengths, settings.batch_tokens, 0)
    assert {len(next(batches)) for _ in range(settings.steps)} >= {1, 2}


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["copies", "shares"])
def test_two_processes_go_on_with_what_one_began_and_one_with_theirs(
    kind: str, alone: tuple[TrainerConfig, Any], beside: dict[str, Any]
) -> None:
    settings, expected = alone
    by_one = resumed(settings, ALONE, find(settings), settings.out / kind)

    np.testing.assert_allclose(beside[f"{kind} after one"], expected[12:], rtol=0, atol=1e-5)
    np.testing.assert_allclose(by_one, expected[12:], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """A run in two processes, as its users start it."""
    path = config(home, "whole", SCALE + 'shard = "full"\n')
    command = [*RETORT, "distill", "-c", str(path)]
    told = subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    assert told.stdout.count(b"report.html") == 1
    return home / "whole"


def losses(points: list[dict[str, Any]]) -> dict[int, float]:
    return {point["step"]: point["loss"] for point in points}


@pytest.mark.long
@pytest.mark.timeout(300)
def test_one_command_trains_in_two_processes_and_one_of_them_writes(
    whole: Path, alone: tuple[TrainerConfig, Any]
) -> None:
    metrics = json.loads((whole / "metrics.json").read_text())
    left = sorted(item.name for item in whole.iterdir())

    assert left == ["checkpoint", "metrics.json", "report.html", "tensorboard"]
    assert len(list((whole / "tensorboard").iterdir())) == 1
    expected = {step: alone[1][step - 1][0] for step in range(2, 25, 2)}
    assert losses(metrics["points"]) == pytest.approx(expected, rel=0, abs=1e-5)
    assert metrics["baseline"]["heldout"]["rows"] == metrics["heldout"]["rows"]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_process_that_is_killed_changes_nothing(home: Path, whole: Path) -> None:
    path = config(home, "killed", "baseline = false\n" + SCALE + 'shard = "full"\n')
    metrics = in_processes("killed", path)
    expected, found = (
        load_file(folder / "checkpoint" / "model.safetensors")
        for folder in (whole, home / "killed")
    )

    assert (home / "killed" / "starts").read_text().split() == ["0", "11"]
    assert losses(metrics["points"]) == losses(
        json.loads((whole / "metrics.json").read_text())["points"]
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_a_ray_cluster_of_two_has_rows_and_losses_of_one_process_also_after_a_kill(
    home: Path, alone: tuple[TrainerConfig, Any]
) -> None:
    path = config(home, "cluster", "baseline = false\n" + SCALE + 'launcher = "ray"\n')
    metrics = in_processes("killed", path)
    expected_run = prepare(alone[0], print)

    assert (home / "cluster" / "starts").read_text().split() == ["0", "11"]
    assert 0 < metrics["duplicates_dropped"] == expected_run.num_dropped < NUM_REPEATED
    assert metrics["rows"] == len(expected_run.material.train_rows)
    assert read_manifest(home / "cluster" / "checkpoint").lineage == expected_run._lineage()
    expected = {step: alone[1][step - 1][0] for step in range(2, 25, 2)}
    assert losses(metrics["points"]) == pytest.approx(expected, rel=0, abs=1e-5)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_an_error_is_told_once_and_not_tried_again(home: Path) -> None:
    path = config(home, "diverging", 'loss = "behaviour_cloning"\n' + SCALE)
    path.write_text(path.read_text().replace("1e-3", "1e30"))
    command = [*RETORT, "distill", "-c", str(path)]
    told = subprocess.run(command, check=False, capture_output=True, text=True)

    assert told.returncode == 1
    assert told.stderr.count("lower learning_rate") == 1


@pytest.mark.long
@pytest.mark.timeout(300)
def test_what_a_metric_of_ones_own_does_wrong_is_told_by_several_processes_too(home: Path) -> None:
    (home / "own.py").write_text("def wild(prompt, answer, reference):\n    return 7\n")
    path = config(home, "wild", 'metric = "own.py:wild"\n' + SCALE)
    command = [*RETORT, "distill", "-c", str(path)]
    told = subprocess.run(command, check=False, capture_output=True, text=True)

    assert told.returncode == 1
    assert "own.py:wild gave 7 for the answer" in told.stderr.splitlines()[-1]


@pytest.mark.parametrize("processes", [1, 2])
def test_ray_that_is_not_there_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    scale = f'[trainer.scale]\nlauncher = "ray"\nprocesses = {processes}\n'
    path = config(home, "rayless", scale)
    with pytest.raises(ConfigError, match="Ray is not installed: pip install"):
        launched(load(path))


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=40).map(np.array),
    size=st.integers(1, 9),
)
def test_a_batch_is_divided_evenly(lengths: Any, size: int) -> None:
    parts = divide(lengths, size)
    tokens = [lengths[part].sum() for part in parts]

    assert sorted(np.concatenate(parts)) == list(range(len(lengths)))
    assert all(list(part) == sorted(part) for part in parts)
    assert max(tokens) - min(tokens) <= max(lengths)
