"""Duplicates that a Ray cluster finds are those that one process finds."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from capture.log import Log
from capture.store import data_files
from tests.support.buckets import new_bucket
from tests.support.log_folders import config_in
from tests.support.repeated_rows import NUM_FILES, TEXT, write_repeated_log
from tests.support.tiny_model import make_tiny_model
from trainer.config import TrainerConfig, load
from trainer.dataset import Flags, Ragged, heldout_flags
from trainer.duplicates import distinct
from trainer.part import columns_of, find

SETTINGS = """\
[trainer]
log = "{log}"
teacher = "teacher"
out = "out"
heldout_fraction = 0.2
duplicates = "{duplicates}"
where = "exchange_id < 'f'"
flagged = "{flagged}"
[trainer.scale]
launcher = "ray"
"""
KINDS = ("drop_exact", "drop_near")
FLAGGED = ("leave_out", "cross_entropy")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, s3_port: int) -> Iterator[Path]:
    """Where one log is, and settings to look for duplicates in it and in another, in a bucket."""
    home = tmp_path_factory.mktemp("cluster")
    teacher = make_tiny_model(home / "teacher")
    with pytest.MonkeyPatch.context() as patch, new_bucket(s3_port, patch) as bucket:
        configs = (bucket.config(home / "other-spool"), config_in(home))
        for config, duplicates, flagged in zip(configs, KINDS, FLAGGED, strict=True):
            write_repeated_log(config, teacher, 3000)
            assert len(data_files(config.log / "logits")) == NUM_FILES
            text = SETTINGS.format(log=config.log, duplicates=duplicates, flagged=flagged)
            (home / f"{duplicates}.toml").write_text(text)
        yield home


@pytest.fixture(scope="module")
def found(home: Path) -> dict[str, list[bool]]:
    """What a cluster of two processes keeps."""
    paths = [str(home / f"{duplicates}.toml") for duplicates in KINDS]
    told = subprocess.run(
        [sys.executable, "-m", "tests.support.clustered", *paths],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "RAY_worker_niceness": "0"},
    )
    return dict(zip(KINDS, json.loads(told.stdout), strict=True))


def alone(config: TrainerConfig) -> tuple[Flags, Flags]:
    """What one process keeps, and what is held out."""
    table = Log(config.log).read(find(config), TEXT)
    is_heldout = heldout_flags(Ragged.from_column(table[TEXT[0]]), config.heldout_fraction)
    return distinct(table, config.heldout_fraction, config.duplicates), is_heldout


@pytest.mark.parametrize("duplicates", KINDS)
def test_a_cluster_keeps_the_rows_that_one_process_keeps(
    home: Path, found: dict[str, list[bool]], duplicates: str
) -> None:
    config = load(home / f"{duplicates}.toml")
    is_kept, is_heldout = alone(config)

    assert len(is_kept) > 2000
    assert 0.05 < is_heldout.mean() < 0.4
    assert 0.1 < is_kept[~is_heldout].mean() < 0.9
    assert found[duplicates] == is_kept.tolist()


def test_only_the_rows_that_are_kept_are_read_in_the_same_order(
    home: Path, found: dict[str, list[bool]]
) -> None:
    config, is_kept = load(home / "drop_near.toml"), np.array(found["drop_near"])
    log, snapshot = Log(config.log), find(config)
    columns = columns_of(config, snapshot)

    assert log.read(snapshot, columns, is_kept) == log.read(snapshot, columns).filter(is_kept)
