"""``retort distill`` as benchmarks run it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def write_run(path: Path, **settings: object) -> None:
    """Write a run's file; values are strings, numbers and booleans."""
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    path.write_text("[trainer]\n" + "".join(lines), encoding="utf-8")


def told(path: Path, *words: str) -> dict[str, Any]:
    """Run ``retort distill`` and return what it says."""
    command = [sys.executable, "-m", "gateway", "distill", *words, "-c", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{path.stem}: {done.stderr[-2000:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said
