"""A command under a limit of memory, and how much it took."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

GROUPS = (  # of version 1 and 2 of control groups: where they are, and what limits one
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)
LOOK_SECONDS = 0.02


def run_limited(command: Sequence[str], limit: int, log: Path) -> tuple[int, int]:
    """Run a command where no more than so many bytes can be had; files in the cache count too.

    Without the right to make a control group nothing limits it, and the peak tells.

    Returns:
        How it ended, and the most that it held at once of what no file backs, in bytes.
    """
    peak = 0
    with _group(limit) as group, log.open("wb") as out:
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"' if group else 'exec "$@"'
        words = ["sh", "-c", enter, "sh", *command]
        with subprocess.Popen(words, stdout=out, stderr=out) as process:
            while process.poll() is None:
                peak = max(peak, _anonymous_bytes(process.pid))
                time.sleep(LOOK_SECONDS)
    return process.returncode, peak


@contextmanager
def _group(limit: int) -> Iterator[Path | None]:
    """A group of that limit; None without the right to make one."""
    for root, name in GROUPS:
        group = root / f"retort-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            with (group / name).open("r+") as file:  # not there where memory is not limited
                file.write(str(limit))
            yield group
        except FileNotFoundError:
            continue
        else:
            return
        finally:
            group.rmdir()
    yield None


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0
    words = status.split()
    return int(words[words.index("RssAnon:") + 1]) * 1024 if "RssAnon:" in words else 0
