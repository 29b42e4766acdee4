from pathlib import Path

import pytest

from capture.commit import Committer
from capture.config import CaptureConfig
from capture.damage import Damage
from capture.quarantine import Note, quarantined
from capture.spool import BAD, closed_segments
from capture.verify import verify
from tests.capture.test_commit import ids
from tests.support.damaged_segments import flip, frame_starts, segment_of, segments_of
from tests.support.log_folders import config_in, folder_of


def set_aside(config: CaptureConfig) -> list[Note]:
    Committer(config).commit()
    return [note for _, note in quarantined(config.spool)]


def test_a_row_that_does_not_match_its_checksum_is_named_with_what_was_before_it(
    tmp_path: Path,
) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a", "b", "c")
    at = frame_starts(path)[3]
    flip(path, at + 100)

    assert set_aside(config) == [Note(damage=Damage("checksum", 3, at), rows_before=1, in_log=True)]
    assert ids(config) == ["a"]


def test_a_segment_cut_short_is_named_as_such(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a", "b")
    at = frame_starts(path)[3]
    path.write_bytes(path.read_bytes()[:-5])

    (note,) = set_aside(config)
    assert note == Note(damage=Damage("cut short", 3, at), rows_before=1, in_log=True)
    assert str(note) == (
        f"frame 3 at byte {at}: it is cut short, or its length was altered; "
        "1 whole rows before it, in the log"
    )


@pytest.mark.parametrize("number", [0, 1])
def test_without_its_header_or_columns_nothing_is_in_the_log(tmp_path: Path, number: int) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a")
    flip(path, frame_starts(path)[number] + 20)

    (note,) = set_aside(config)
    assert (note.damage.reason, note.damage.frame) == ("checksum", number)
    assert (note.rows_before, note.in_log) == (0, False)


def test_a_segment_under_another_ones_name_is_set_aside(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a")
    path.rename(path.with_name("logits-w-000007.seg"))

    (note,) = set_aside(config)
    assert note.damage == Damage("header", 0, 0, "logits-w-000001")
    assert not (folder_of(config) / "logits").exists() or ids(config) == []


def test_verify_tells_why(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a", "b")
    at = frame_starts(path)[3]
    flip(path, at + 100)
    Committer(config).commit()

    assert verify(config).document()["damaged"] == [
        {
            "segment": "logits-w-000001",
            "reason": "checksum",
            "frame": 3,
            "at_byte": at,
            "detail": "",
            "rows_before": 1,
            "in_log": True,
        }
    ]


def test_a_reason_that_was_not_kept_is_found_again(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a", "b")
    at = frame_starts(path)[3]
    flip(path, at + 100)
    Committer(config).commit()
    path.with_suffix(".why").unlink()

    ((_, note),) = quarantined(config.spool)
    assert note.damage == Damage("checksum", 3, at)


def test_a_disk_without_room_for_the_reason_does_not_keep_the_segment_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(tmp_path)
    flip(segment_of(config.spool, "a"), 20)
    real = Path.write_text

    def refuse(self: Path, *args: str, **kwargs: str) -> int:
        if self.name.startswith("logits-w-"):
            raise OSError("no room")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", refuse)
    segment_of(config.spool, "b", writer="x")

    assert [note.damage.reason for note in set_aside(config)] == ["checksum"]
    assert ids(config) == ["b"]


def test_damage_in_what_a_dead_writer_left_open_is_no_torn_tail(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a", "b", "c")
    starts, size = frame_starts(path), path.stat().st_size
    flip(path, starts[3] + 100)
    path.rename(path.with_suffix(".open"))

    (note,) = set_aside(config)
    assert note.damage == Damage("checksum", 3, starts[3])
    assert path.with_suffix(BAD).stat().st_size == size


def test_a_copy_of_a_committed_segment_is_removed(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a")
    copy = path.read_bytes()
    Committer(config).commit()
    path.write_bytes(copy)

    assert set_aside(config) == []
    assert (ids(config), closed_segments(config.spool)) == (["a"], [])


def test_a_damaged_segment_whose_front_is_in_the_log_is_set_aside_though_the_commit_died(
    tmp_path: Path,
) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a", "b", "c")
    flip(path, frame_starts(path)[3] + 100)
    Committer(config).commit()
    path.with_suffix(BAD).rename(path)
    path.with_suffix(".why").unlink()

    (note,) = set_aside(config)
    assert (note.damage.reason, note.rows_before, note.in_log) == ("checksum", 1, True)
    assert ids(config) == ["a"]


def test_a_segment_that_comes_after_a_later_one_is_set_aside(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    first, _ = segments_of(config.spool, "a", "b")
    away = first.rename(tmp_path / "away")
    Committer(config).commit()
    away.rename(first)

    (note,) = set_aside(config)
    assert note == Note(damage=Damage("order", 0, 0), rows_before=1)
    assert ids(config) == ["b"]


def test_a_copy_of_a_segment_set_aside_does_not_replace_it(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    path = segment_of(config.spool, "a", "b", "c")
    flip(path, frame_starts(path)[3] + 100)
    damaged = path.read_bytes()
    Committer(config).commit()
    path.write_bytes(damaged[:-1])
    Committer(config).commit()

    assert path.with_suffix(BAD).read_bytes() == damaged
    assert path.read_bytes() == damaged[:-1]
