"""Commit a spool and die by SIGKILL at one point.

``python -m tests.support.killed_commit SPOOL LOG POINT``, where the log is a folder or a URL.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

from capture import commit
from capture.commit import Committer
from capture.config import CaptureConfig


def die(*_: object, **__: object) -> None:
    """End as abruptly as the kernel can end us."""
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(owner: Any, name: str) -> None:
    """Let the first call of a function finish, and die."""
    real: Callable[..., object] = getattr(owner, name)

    def call(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)
        die()

    setattr(owner, name, call)


def die_around_unlink(suffix: str, *, after: bool) -> None:
    """Die before or after a file of one kind is unlinked."""
    real = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        is_it = self.suffix == suffix and self.exists()
        if is_it and not after:
            die()
        real(self, missing_ok)
        if is_it:
            die()

    Path.unlink = unlink  # type: ignore[method-assign]


POINTS: dict[str, Callable[[], None]] = {
    "names put down": lambda: setattr(commit, "write_file", die),
    "first file written": lambda: then_die(commit, "write_file"),
    "before the transaction": lambda: setattr(DeltaTable, "create_write_transaction", die),
    "after the transaction": lambda: then_die(DeltaTable, "create_write_transaction"),
    "before the names go": lambda: die_around_unlink(".intent", after=False),
    "before the first segment goes": lambda: die_around_unlink(".seg", after=False),
    "after the first segment went": lambda: die_around_unlink(".seg", after=True),
}

if __name__ == "__main__":
    spool, log, point = sys.argv[1:]
    POINTS[point]()
    Committer(CaptureConfig.model_validate({"spool": spool, "log": log})).commit()
