"""Processor time of an engine and what it started: quieter than the clock on a busy machine."""

import contextlib
import os

import psutil

from capture.engine import Engine


def cpu_seconds(engine: Engine) -> float:
    """Time that the living processes of an engine's session have computed so far."""
    assert engine._process is not None
    session = engine._process._process.pid
    total = 0.0
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session:
                times = process.cpu_times()
                total += times.user + times.system
    return total
