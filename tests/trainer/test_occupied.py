import errno
import fcntl
import os
from pathlib import Path

import pytest
import torch.distributed as dist

from capture.errors import ConfigError
from tests.support.distill_run import distill, make_home, write_config
from trainer.config import load
from trainer.launch import launched
from trainer.occupied import LOCK, occupied


def test_a_folder_that_a_run_is_writing_to_is_refused_until_it_has_ended(tmp_path: Path) -> None:
    path = write_config(make_home(tmp_path), baseline="false", student='"teacher"')
    out = tmp_path / "out"
    told = f"another run is writing to {out}: choose another out"
    with occupied(out), pytest.raises(ConfigError, match=told):
        distill(path)

    assert distill(path).exit_code == 0
    left = sorted(item.name for item in out.iterdir())
    assert left == ["checkpoint", "metrics.json", "report.html", "tensorboard"]


def test_the_first_process_of_those_that_torchrun_has_started_keeps_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(write_config(make_home(tmp_path), baseline="false", student='"teacher"'))
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for name, value in {**alone, "TORCHELASTIC_RUN_ID": "a run"}.items():
        monkeypatch.setenv(name, value)
    try:
        with occupied(config.out), pytest.raises(ConfigError, match="another run is writing"):
            launched(config)
    finally:
        dist.destroy_process_group()

    assert launched(config) is not None
    assert not (config.out / LOCK).exists()


def test_a_lock_that_somebody_left_behind_hinders_nobody(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with occupied(tmp_path):
        pass

    assert not list(tmp_path.iterdir())


def test_a_disk_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with occupied(tmp_path):
        pass

    assert f"{tmp_path} cannot be locked" in caplog.text
