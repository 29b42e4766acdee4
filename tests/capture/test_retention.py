import os
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from capture import retention
from capture.commit import Committer
from capture.config import CaptureConfig
from capture.errors import LogError
from capture.log import Log
from capture.rewrite import compact
from capture.verify import verify
from tests.support.log_folders import (
    config_in,
    folder_of,
    ids_on_disk,
    spool_exchanges,
    spool_logits,
)
from tests.support.log_rows import exchange_row, logit_row

TODAY = date(2026, 11, 24)


def kept(folder: Path, days: int) -> CaptureConfig:
    """Four days of exchanges, compacted once, of which only the last few may stay."""
    config = config_in(folder).model_copy(update={"retention_days": days})
    for day in (21, 22, 23, 24):
        for name in (f"{day}a", f"{day}b"):
            spool_exchanges(config, exchange_row(name, day=f"2026-11-{day}"))
            spool_logits(config, logit_row(name, day=f"2026-11-{day}"))
            Committer(config).commit()
    compact(config.log)
    return config


def test_days_that_are_too_old_leave_the_disk_and_all_versions(tmp_path: Path) -> None:
    config = kept(tmp_path, 1)

    expired = Committer(config, lambda: TODAY).expire()

    assert expired.rows == {"exchanges": 4, "logits": 4}
    assert ids_on_disk(config) == {"23a", "23b", "24a", "24b"}
    days = sorted(path.name for path in (folder_of(config) / "logits").glob("day=*"))
    assert days == ["day=2026-11-23", "day=2026-11-24"]
    assert verify(config).problems == []
    assert Committer(config, lambda: TODAY).expire().rows == {"exchanges": 0, "logits": 0}


def test_snapshots_of_days_that_are_kept_can_still_be_read(tmp_path: Path) -> None:
    config = kept(tmp_path, 1)
    log = Log(config.log)
    old, young = log.snapshot(), log.snapshot("day >= '2026-11-23'")

    Committer(config, lambda: TODAY).expire()

    assert log.read(young, ["exchange_id"]).num_rows == 4
    with pytest.raises(LogError):
        log.read(old, ["exchange_id"])


def test_nothing_expires_unless_asked_for(tmp_path: Path) -> None:
    config = kept(tmp_path, 1).model_copy(update={"retention_days": None})
    assert Committer(config, lambda: date(2030, 1, 1)).expire().rows["logits"] == 0
    assert len(ids_on_disk(config)) == 8


def test_damaged_segments_expire_too(tmp_path: Path) -> None:
    config = kept(tmp_path, 1)
    for name, moment in (("0", "2026-11-22"), ("1", "2026-11-23")):
        path = config.spool / f"logits-{name}-000001.bad"
        path.write_bytes(b"nothing")
        began = exchange_row(day=moment).started_at.timestamp()
        os.utime(path, (began, began))

    assert Committer(config, lambda: TODAY).expire().damaged == 1
    assert [path.name for path in config.spool.glob("*.bad")] == ["logits-1-000001.bad"]


def test_a_second_try_removes_what_a_crash_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = kept(tmp_path, 1)

    def die(_: Path) -> None:
        raise OSError("the disk failed")

    with monkeypatch.context() as failing:
        failing.setattr(Path, "unlink", die)
        with pytest.raises(LogError):
            retention.expire(config, TODAY)
    assert "21a" in ids_on_disk(config)
    retention.expire(config, TODAY)
    assert ids_on_disk(config) == {"23a", "23b", "24a", "24b"}
    assert verify(config).problems == []


def test_a_watch_applies_it_at_its_start_and_on_every_new_day(tmp_path: Path) -> None:
    config = kept(tmp_path, 1)
    days, stop = [TODAY, TODAY, date(2026, 11, 25)], threading.Event()
    expired: list[date] = []

    def today() -> date:
        if len(days) == 1:
            stop.set()
            return days[0]
        return days.pop(0)

    class Watched(Committer):
        def expire(self) -> retention.Expired:
            expired.append(days[0])
            return super().expire()

    Watched(config, today).watch(stop)

    assert ids_on_disk(config) == {"24a", "24b"}
    assert len(expired) == 2


def test_distributions_may_be_a_day_younger_than_their_exchange(tmp_path: Path) -> None:
    config = config_in(tmp_path).model_copy(update={"retention_days": 1})
    spool_exchanges(config, exchange_row("x", day="2026-11-22"))
    spool_logits(config, replace(logit_row("x"), day="2026-11-23"))
    Committer(config).commit()

    assert Committer(config, lambda: TODAY).expire().rows == {"exchanges": 1, "logits": 0}
    tomorrow = Committer(config, lambda: date(2026, 11, 25))
    assert tomorrow.expire().rows == {"exchanges": 0, "logits": 1}
    assert ids_on_disk(config) == set()
