import fcntl
import os
import threading
from pathlib import Path

import pytest

from capture.locks import create_locked, locked, locked_if_free


def test_a_file_taken_away_before_it_was_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tries = tmp_path / "x.lock", list[int]()
    real = fcntl.flock

    def flock(file: int, operation: int) -> None:
        if not tries:
            path.unlink()  # whoever cleans up after the dead was here between creation and lock
        tries.append(operation)
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    file = create_locked(path)

    assert len(tries) == 2
    assert os.path.samestat(path.stat(), os.fstat(file))
    os.close(file)


def test_only_one_holds_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    file = create_locked(path)
    with locked_if_free(path) as held:
        assert held is None

    os.close(file)
    with locked_if_free(path) as held:
        assert held is not None


def test_a_file_that_is_gone_cannot_be_held(tmp_path: Path) -> None:
    with locked_if_free(tmp_path / "nothing") as held:
        assert held is None


def test_whoever_waits_for_a_lock_comes_after_its_holder(tmp_path: Path) -> None:
    path, order = tmp_path / "x.lock", list[str]()

    def second() -> None:
        with locked(path):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(path):
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
