"""Nothing is unlinked before what replaces it is on the disk, names of folders included."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from capture.commit import Committer
from capture.config import CaptureConfig
from capture.erasure import erase
from capture.repair import Repairer
from capture.rewrite import compact
from capture.rows import encode_logits
from capture.schema import TABLES
from capture.selection import Selection
from capture.spool import OPEN, read_segment, segments
from capture.verify import verify
from capture.writer import Spool, SpoolLimits
from tests.support.damaged_segments import flip, frame_starts, segment_of
from tests.support.log_folders import config_in, filled, scattered, spool_exchanges, spool_logits
from tests.support.log_rows import exchange_row, logit_row
from tests.support.power_loss import Platter, images_of_unlinks
from tests.support.spool_model import rows_in_log

ALICE = Selection(tenant="a")


def first_rows(folder: Path) -> CaptureConfig:
    """Rows of both tables in the spool; there is no log yet."""
    config = config_in(folder)
    spool_exchanges(config, exchange_row("a"))
    spool_logits(config, logit_row("a"), logit_row("b", day="2026-11-25"))
    return config


def rows_of_a_new_day(folder: Path) -> CaptureConfig:
    """Rows for a log that holds another day."""
    config = filled(folder, [exchange_row("a")], [logit_row("a")])
    spool_logits(config, logit_row("b", day="2026-11-25"))
    return config


def a_row_behind_damage(folder: Path) -> CaptureConfig:
    """Rows, one of them behind a damaged one that nobody may miss."""
    config = filled(folder, [exchange_row("a")])
    path = segment_of(config.spool, "a", "damaged", "b")
    flip(path, frame_starts(path)[3] + 20)
    return config


@pytest.mark.parametrize("prepare", [first_rows, rows_of_a_new_day, a_row_behind_damage])
def test_power_lost_when_any_file_has_gone_costs_no_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[Path], CaptureConfig],
) -> None:
    (tmp_path / "home").mkdir()
    config = prepare(tmp_path / "home")
    with monkeypatch.context() as patch:
        images = images_of_unlinks(tmp_path / "home", tmp_path / "images", patch)
        Repairer(config).repair()

    assert any(name.endswith((".seg", ".bad")) for name, _ in images)
    for _, image in images:
        survived = config_in(image)
        Committer(survived).commit()
        Repairer(survived).repair()
        assert rows_in_log(survived, "exchanges") == {"a": 1}
        assert rows_in_log(survived, "logits") == {"a": 1, "b": 1}
        assert verify(survived).problems == []


@pytest.mark.parametrize("change", [lambda c: compact(c.log), lambda c: erase(c, ALICE)])
def test_power_lost_after_a_change_leaves_a_log_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[CaptureConfig], object]
) -> None:
    config = scattered(tmp_path / "home")
    with monkeypatch.context() as patch:
        platter = Platter.of(tmp_path / "home", patch)
        change(config)
        spool_logits(config, logit_row("d"))
        Committer(config).commit()
        survived = config_in(platter.after_power_loss(tmp_path / "image"))

    for table in TABLES:
        assert rows_in_log(survived, table) == rows_in_log(config, table)
    assert verify(survived).problems == []


def test_a_row_told_as_synced_is_there_after_power_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    config = config_in(tmp_path / "home" / "not" / "there" / "yet")
    with monkeypatch.context() as patch:
        platter = Platter.of(tmp_path / "home", patch)
        spool = Spool(config.spool, "logits", encode_logits, limits=SpoolLimits())
        synced = threading.Event()
        spool.offer(logit_row("a"), 100, synced=synced.set)
        assert synced.wait(10)
        image = platter.after_power_loss(tmp_path / "image")
        spool.close()

    ((_, path),) = segments(image / "not" / "there" / "yet" / "spool", OPEN)
    assert read_segment(path).num_rows == 1
