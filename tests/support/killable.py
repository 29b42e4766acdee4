"""The programs of a running Retort as processes that can be killed and started again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import httpx

from tests.support.retort import RETORT

START_SECONDS = 30.0


class Victim(Protocol):
    """What can be killed and started again."""

    def kill(self) -> None: ...

    def start(self) -> None: ...


class Killable:
    """A server process; ``start`` returns once it answers, or fails after some seconds."""

    def __init__(
        self, command: list[str], ready_url: str, log_path: Path, seconds: float = START_SECONDS
    ) -> None:
        self._command = command
        self._ready_url = ready_url
        self._log_path = log_path
        self._seconds = seconds
        self.start()

    def start(self) -> None:
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_for(self.is_ready, self._seconds)

    def is_ready(self) -> bool:
        assert self._process.poll() is None, self._log_path.read_text()
        try:
            return httpx.get(self._ready_url).status_code in {200, 404}
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 0, self._log_path.read_text()


class Committers:
    """Processes that commit for one configuration; who keeps them running starts them again."""

    def __init__(self, config: Path) -> None:
        self._config = str(config)

    def kill(self) -> None:
        """Kill every one there is, waiting for the first to come up."""
        wait_for(lambda: bool(self.pids()))
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)

    def start(self) -> None:
        """The gateway does."""

    def pids(self) -> list[int]:
        wanted = [sys.executable, *RETORT[1:], "log", "commit", "--watch", "-c", self._config]
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if command(path) == wanted]


def command(process: Path) -> list[str]:
    """A process's command line, empty once it has ended."""
    try:
        return (process / "cmdline").read_bytes().decode().split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def wait_for(condition: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come up"
        time.sleep(0.02)
