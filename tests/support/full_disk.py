"""A disk that refuses to take anything for a spool segment."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Semaphore

import pytest


@contextmanager
def failing_disk(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[Semaphore]:
    """Refuse writes, syncs and new segments inside this context; gives a count of refusals."""
    refusals = Semaphore(0)

    def refuse(*_: object, **__: object) -> int:
        refusals.release()
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        for name in ("writev", "fdatasync", "fsync", "ftruncate", "rename", "replace"):
            patch.setattr(os, name, refuse)
        yield refusals


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse writes inside this context."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", refuse)
        yield
