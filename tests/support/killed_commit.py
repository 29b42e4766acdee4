"""Commit or repair and die by SIGKILL at one point.

``python -m tests.support.killed_commit SPOOL LOG commit|repair POINT``
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from capture import commit, delta, rewrite
from capture.commit import Committer
from capture.config import CaptureConfig
from capture.repair import Repairer

Die = Callable[..., None]
Point = Callable[[pytest.MonkeyPatch, Die], None]


def be_killed(*_: object, **__: object) -> None:
    """End as abruptly as the kernel can end us."""
    os.kill(os.getpid(), signal.SIGKILL)


def instead(owner: Any, name: str) -> Point:
    """Die in place of a function."""
    return lambda patch, die: patch.setattr(owner, name, die)


def after(owner: Any, name: str) -> Point:
    """Let the first call of a function finish, and die."""

    def arm(patch: pytest.MonkeyPatch, die: Die) -> None:
        real: Callable[..., object] = getattr(owner, name)

        def call(*args: object, **kwargs: object) -> None:
            real(*args, **kwargs)
            die()

        patch.setattr(owner, name, call)

    return arm


def unlinking(suffix: str, *, first: bool) -> Point:
    """Die before a file of one kind is unlinked, or after that."""

    def arm(patch: pytest.MonkeyPatch, die: Die) -> None:
        real = Path.unlink

        def unlink(self: Path, missing_ok: bool = False) -> None:
            is_it = self.suffix == suffix and self.exists()
            if is_it and first:
                die()
            real(self, missing_ok)
            if is_it:
                die()

        patch.setattr(Path, "unlink", unlink)

    return arm


BOTH: dict[str, Point] = {
    "names put down": instead(commit, "write_file"),
    "first file written": after(commit, "write_file"),
    "before the transaction": instead(DeltaTable, "create_write_transaction"),
    "after the transaction": after(DeltaTable, "create_write_transaction"),
    "before the transaction is synced": instead(delta, "sync_versions"),
    "before the names go": unlinking(".intent", first=True),
}
COMMIT: dict[str, Point] = {
    **BOTH,
    "before the first segment goes": unlinking(".seg", first=True),
    "after the first segment went": unlinking(".seg", first=False),
}
REPAIR: dict[str, Point] = {
    **BOTH,
    "before the damaged segment goes": unlinking(".bad", first=True),
    "after the damaged segment went": unlinking(".bad", first=False),
    "before the lost rows are counted": instead(Repairer, "_write_off"),
    "before the reason goes": unlinking(".why", first=True),
}
JOIN: dict[str, Point] = {
    "before the file": instead(rewrite, "write_file"),
    "file written": after(rewrite, "write_file"),
    "before the transaction": instead(DeltaTable, "create_write_transaction"),
    "after the transaction": after(DeltaTable, "create_write_transaction"),
    "before the names go": unlinking(".intent", first=True),
}


def killed(config: CaptureConfig, what: str, point: str) -> bool:
    """Commit or repair in a process; says whether it was killed on the way."""
    command = [sys.executable, "-m", "tests.support.killed_commit", str(config.spool)]
    ended = subprocess.run([*command, str(config.log), what, point], check=False)
    return ended.returncode == -signal.SIGKILL


if __name__ == "__main__":
    spool, log, what, point = sys.argv[1:]
    config = CaptureConfig.model_validate({"spool": spool, "log": log})
    if what == "commit":
        COMMIT[point](pytest.MonkeyPatch(), be_killed)
        Committer(config).commit()
    else:
        REPAIR[point](pytest.MonkeyPatch(), be_killed)
        Repairer(config).repair()
