import os
from collections import Counter
from pathlib import Path

import pytest

from capture.balance import Balance
from capture.commit import Committer
from capture.config import CaptureConfig
from capture.delta import Change, apply, open_table
from capture.errors import LogError
from capture.forgotten import forget
from capture.locks import create_locked
from capture.repair import Repaired, Repairer
from capture.spool import BAD, OpenSegment, SegmentName, segments
from capture.verify import verify
from tests.capture.test_commit import ids
from tests.support.damaged_segments import flip, frame_starts, segment_of, segments_of
from tests.support.killed_commit import REPAIR, killed
from tests.support.log_folders import config_in, filled, folder_of
from tests.support.log_rows import logit_row


def damaged(folder: Path, *numbers: int) -> CaptureConfig:
    """Five rows a to e, of whose frames some were altered; committed once."""
    config = config_in(folder)
    path = segment_of(config.spool, *"abcde")
    starts = frame_starts(path)
    for number in numbers:
        flip(path, starts[number] + 20)
    Committer(config).commit()
    return config


def repaired(config: CaptureConfig) -> Repaired:
    """Repair, and check that all is well then and that doing it again does nothing."""
    done = Repairer(config).repair()
    found = verify(config)
    assert (found.problems, found.quarantined, found.orphan_files) == ([], 0, 0)
    again = Repairer(config).repair()
    assert (again.rows, again.removed, again.lost) == (Repaired().rows, [], Counter())
    assert verify(config).tables == found.tables
    return done


@pytest.mark.parametrize(
    ("numbers", "before", "after"),
    [
        ((4,), "ab", "abde"),
        ((2,), "", "bcde"),
        ((3, 5), "a", "ace"),
        ((6,), "abcd", "abcd"),
        ((0,), "", "abcde"),
        ((1,), "", "abcde"),
        ((0, 1, 4), "", "abde"),
        ((2, 3, 4, 5, 6), "", ""),
    ],
)
def test_every_whole_row_comes_into_the_log_once_and_the_rest_is_counted(
    tmp_path: Path, numbers: tuple[int, ...], before: str, after: str
) -> None:
    config = damaged(tmp_path, *numbers)
    assert ids(config) == list(before)

    done = repaired(config)

    lost = 5 - len(after)
    assert ids(config) == list(after)
    assert done.rows["logits"] == len(after) - len(before)
    assert done.lost == Counter(damaged=lost) - Counter()
    assert verify(config).tables["logits"] == Balance(
        5, len(after), Counter(damaged=lost) - Counter(), 0
    )
    assert segments(config.spool, BAD) == segments(config.spool, ".why") == []


@pytest.mark.timeout(300)  # starts a process
@pytest.mark.parametrize("point", REPAIR)
def test_killed_anywhere_a_repair_adds_nothing_twice(tmp_path: Path, point: str) -> None:
    config = damaged(tmp_path, 4)
    assert killed(config, "repair", point)

    repaired(config)
    assert ids(config) == list("abde")


def test_more_damage_after_it_was_set_aside_adds_nothing_twice(tmp_path: Path) -> None:
    config = damaged(tmp_path, 5)
    assert ids(config) == ["a", "b", "c"]
    (path,) = config.spool.glob(f"*{BAD}")
    flip(path, 8 + 20)  # the header
    flip(path, len(path.read_bytes()) // 2)

    repaired(config)
    assert set("abc") <= set(ids(config)) <= set("abcde")
    assert len(ids(config)) == len(set(ids(config)))


def test_a_good_copy_brings_back_what_was_lost_and_nothing_twice(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, *"abcde")
    good = path.read_bytes()
    flip(path, frame_starts(path)[4] + 20)
    Committer(config).commit()
    path.write_bytes(good)  # while the damaged one is still set aside
    repaired(config)
    assert ids(config) == list("abcde")

    path.write_bytes(good)  # and after everything is in the log
    repaired(config)
    assert ids(config) == list("abcde")
    assert not path.exists()


def test_a_good_copy_of_a_segment_that_was_salvaged_whole_adds_nothing_twice(
    tmp_path: Path,
) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a")
    good = path.read_bytes()
    flip(path, 20)
    repaired(config)
    path.write_bytes(good)

    repaired(config)
    assert ids(config) == ["a"]


def test_a_segment_that_comes_after_a_later_one_is_added(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    first, _ = segments_of(config.spool, "ab", "c")
    away = first.rename(tmp_path / "away")
    Committer(config).commit()
    away.rename(first)

    repaired(config)
    assert ids(config) == ["a", "b", "c"]
    assert verify(config).tables["logits"] == Balance(3, 3, Counter(), 0)


def test_a_copy_of_a_later_segment_is_still_known_after_an_earlier_one_was_repaired(
    tmp_path: Path,
) -> None:
    config = config_in(tmp_path)
    first, second = segments_of(config.spool, "abc", "d")
    flip(first, frame_starts(first)[3] + 20)
    copy = second.read_bytes()
    Committer(config).commit()
    repaired(config)
    second.write_bytes(copy)

    repaired(config)
    assert ids(config) == ["a", "c", "d"]


def test_rows_of_a_living_writer_stay_accounted_for_as_it_goes_on(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a", "b")
    flip(path, frame_starts(path)[2] + 20)
    lock = create_locked(config.spool / "logits-w.lock")
    Committer(config).commit()

    done = Repairer(config).repair()

    assert (done.rows["logits"], done.lost) == (1, Counter())
    assert verify(config).tables["logits"] == Balance(2, 1, Counter(damaged=1), 0)
    assert verify(config).problems == []
    os.close(lock)
    assert repaired(config).lost == Counter(damaged=1)


def test_a_segment_of_another_format_is_kept(tmp_path: Path) -> None:
    config = filled(tmp_path, logits=[logit_row("a")])
    segment = OpenSegment(config.spool, SegmentName("logits", "w", 1))
    segment.append([b'{"format_version": 9}', b"whatever that may be"])
    segment.close()

    done = Repairer(config).repair()

    assert [Path(path).name for path in done.kept] == ["logits-w-000001.bad"]
    ((_, note),) = verify(config).damaged.items()
    assert (note.damage.reason, note.damage.detail) == ("format", "format 9, expected 1 or 2")


def test_segments_that_vanished_are_written_off_once(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    first, _ = segments_of(config.spool, "ab", "c")
    first.unlink()
    Committer(config).commit()
    assert verify(config).problems == ["logits: 2 rows of writer w have vanished"]

    assert repaired(config).lost == Counter(vanished=2)
    assert verify(config).tables["logits"] == Balance(3, 1, Counter(vanished=2), 0)


def test_files_that_nobody_counts_are_removed(tmp_path: Path) -> None:
    config = filled(tmp_path, logits=[logit_row("a")])
    stray = folder_of(config) / "logits" / "day=2026-11-24" / "part-stray.parquet"
    stray.write_bytes(b"stray")

    assert Repairer(config).repair().orphan_files == 1
    assert not stray.exists()
    assert (ids(config), verify(config).orphan_files) == (["a"], 0)


def test_what_was_erased_or_redacted_is_not_salvaged(tmp_path: Path) -> None:
    config = damaged(tmp_path, 4)
    forget(config.log, "erased", ["d"])

    done = repaired(config)
    assert (done.rows["logits"], ids(config)) == (1, ["a", "b", "e"])
    assert verify(config).tables["logits"] == Balance(5, 3, Counter(erased=1, damaged=1), 0)


def test_the_table_itself_refuses_a_second_repair_of_a_segment(tmp_path: Path) -> None:
    config = damaged(tmp_path, 4)
    stale = open_table(config.log, "logits")
    assert stale is not None
    Repairer(config).repair()

    with pytest.raises(LogError, match="Concurrent transaction"):
        apply(
            config.log / "logits",
            stale,
            Change(segments={"w": {1: 1}}, spans={"w": {1: [(0, 1)]}}, is_salvage=True),
        )
