import json
from pathlib import Path

import pytest

from capture.account import Account, read_counts


def test_counts_are_found_again_by_table_and_writer(tmp_path: Path) -> None:
    account = Account(tmp_path, "logits", "w")
    for _ in range(5):
        account.start()
    account.write(3)
    account.drop("overflow")
    account.drop("store", 1)
    account.save()

    counts = read_counts(tmp_path)["logits", "w"]
    assert (counts.started, counts.written) == (5, 3)
    assert counts.dropped == {"overflow": 1, "store": 1}


def test_nothing_is_written_while_nothing_changes(tmp_path: Path) -> None:
    account = Account(tmp_path, "logits", "w")
    account.save()
    assert list(tmp_path.iterdir()) == []

    account.start()
    account.save()
    account.path.unlink()
    account.save()
    assert not account.path.exists()


def test_the_owner_hears_of_the_first_change_after_each_save(tmp_path: Path) -> None:
    heard: list[str] = []
    account = Account(tmp_path, "logits", "w", lambda: heard.append("changed"))
    account.start()
    account.start()
    assert len(heard) == 1

    account.save()
    account.drop("empty")
    assert len(heard) == 2


def test_counts_that_the_disk_refused_are_written_later(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    account = Account(folder, "logits", "w")
    account.start()
    with pytest.raises(FileNotFoundError):
        account.save()

    folder.mkdir()
    account.save()
    assert read_counts(folder)["logits", "w"].started == 1


def test_a_file_cut_short_is_left_out(tmp_path: Path) -> None:
    account = Account(tmp_path, "logits", "w")
    account.start()
    account.save()
    (tmp_path / "logits-v.account.json").write_bytes(b"")

    assert list(read_counts(tmp_path)) == [("logits", "w")]


def test_the_file_is_json_that_others_can_read(tmp_path: Path) -> None:
    account = Account(tmp_path, "exchanges", "w")
    account.start()
    account.save()

    assert json.loads(account.path.read_text(encoding="utf-8")) == {
        "table": "exchanges",
        "writer": "w",
        "started": 1,
        "written": 0,
        "dropped": {},
    }
