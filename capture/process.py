"""A child process that cannot outlive us: its output in a file, its whole group ended with it."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

LOG_TAIL_LINES = 15
SCRATCH = ("VLLM_RPC_BASE_PATH",)  # an engine that is killed leaves its sockets
LOG_TAIL_BYTES = 65536  # a log grows for as long as its process serves


@dataclass(frozen=True, slots=True)
class GuardedProcess:
    """A command run under ``capture.watchdog``.

    Attributes:
        log_path: File that receives everything the command prints.
        grace_seconds: How long it may take to end when asked.
    """

    log_path: Path
    grace_seconds: float
    _process: "subprocess.Popen[bytes]"

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        env: Mapping[str, str],
        log_path: Path,
        grace_seconds: float = 5.0,
    ) -> Self:
        """Launch the command with environment overrides and return at once."""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                guarded(command, env, grace_seconds),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(log_path, grace_seconds, process)

    @property
    def pid(self) -> int:
        """Of the watchdog, whose children are the command and what it started."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is alive."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask it to end, wait, then kill; safe to call twice."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(self.grace_seconds + 10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def last_lines(log_path: Path) -> str:
    """The end of a log file, indented; why there is none if it cannot be read."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(0, log_path.stat().st_size - LOG_TAIL_BYTES))
            lines = log.read().decode("utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"({error.strerror})"
    return "\n  ".join(lines[-LOG_TAIL_LINES:])


def guarded(
    command: Sequence[str], env: Mapping[str, str], grace_seconds: float = 5.0
) -> list[str]:
    """The command line that runs a command under the watchdog; keep its standard input open."""
    options = json.dumps({"env": dict(env), "grace_seconds": grace_seconds, "scratch": SCRATCH})
    return [sys.executable, "-m", "capture.watchdog", options, *command]
