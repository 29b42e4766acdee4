"""Processor time of an engine and what it started: quieter than the clock on a busy machine."""

import contextlib

import psutil

from capture.engine import Engine


def cpu_seconds(engine: Engine) -> float:
    """Time that an engine's living processes have computed so far."""
    watchdog = psutil.Process(engine.pid)
    total = 0.0
    for process in watchdog.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total
