"""The ``retort`` command as its users run it."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

RETORT = [sys.executable, "-m", "gateway"]
READY_SECONDS = 600.0


def address(config: Path) -> str:
    line = next(line for line in config.read_text().splitlines() if line.startswith("listen"))
    return "http://" + line.split('"')[1]


@contextmanager
def serving(config: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the gateway until the context ends; it must end by itself when it is asked to."""
    process = subprocess.Popen([*RETORT, "serve", "-c", str(config)])
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not is_ready(config):
            assert process.poll() is None, "the gateway ended"
            assert time.monotonic() < deadline, "the gateway is not ready"
            time.sleep(0.1)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in {0, -signal.SIGKILL}


def is_ready(config: Path) -> bool:
    try:
        return httpx.get(address(config) + "/readyz").is_success
    except httpx.TransportError:
        return False
