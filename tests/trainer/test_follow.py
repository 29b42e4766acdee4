import json
import threading
import time
from pathlib import Path

import pytest

from capture.errors import ConfigError
from capture.revision import model_revision
from tests.support.answered_rows import answer, write_log
from tests.support.distill_run import make_home, write_config
from trainer import follow as follow_module
from trainer.config import load
from trainer.follow import follow, wait_for_rows
from trainer.part import find


def grow(home: Path, num_rows: int, name: str) -> None:
    """Append answers to the log under other ids."""
    table = answer(home / "teacher", num_rows, seed=7)
    ids = [f"{name}{number}" for number in range(num_rows)]
    table = table.set_column(0, table.schema.field(0), [ids])
    write_log(table, home / "log", home / f"spool{name}")


def test_each_run_starts_from_the_last_checkpoint_and_sees_what_came_since(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    config = load(write_config(home, baseline="false", steps="4"))
    runs = follow(config, growth=0.2)
    first = next(runs)
    checkpoint = config.out / "checkpoint"
    before = model_revision(checkpoint)
    grow(home, 12, "new")
    second = next(runs)
    lineage = json.loads((checkpoint / "retort.json").read_text())["lineage"]

    assert [run.snapshot["num_rows"] for run in (first, second)] == [40, 52]
    assert lineage["parent_revision"] == before != model_revision(checkpoint)
    assert second.student_parameters == first.student_parameters


def test_it_waits_for_enough_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "PAUSE_SECONDS", 0.01)
    home = make_home(tmp_path)
    config = load(write_config(home))
    waiting = threading.Thread(target=wait_for_rows, args=(config, find(config), 48), daemon=True)
    waiting.start()
    grow(home, 4, "few")
    waiting.join(0.5)
    assert waiting.is_alive()
    began = time.monotonic()
    grow(home, 4, "more")
    waiting.join(30)
    assert not waiting.is_alive(), f"after {time.monotonic() - began} s"


def test_a_group_that_torchrun_has_started_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    config = load(write_config(tmp_path))
    with pytest.raises(ConfigError, match="do not start it by torchrun"):
        next(follow(config, growth=0.2))
