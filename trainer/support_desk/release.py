"""The folder that a build fills: replaced whole, and known again by version and seed."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

METRICS = "metrics.json"


class Metrics(BaseModel):
    """What a build cost and how good its teacher is.

    Attributes:
        version: Of the code and phrases that made it.
        exact_match: Share of held-out messages answered to the letter, per slice, in ``[0, 1]``.
        parameters: Of the teacher.
        train_tokens: Learned from, padding left out.
        seconds: Wall time of the whole build.
        cpu_seconds: Processor time of all its threads.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    seed: int
    exact_match: dict[str, float]
    parameters: int
    train_tokens: int
    threads: int
    seconds: float
    cpu_seconds: float


def version() -> str:
    """Return 16 hex digits over this package's files; any change to them makes another teacher."""
    total = hashlib.sha256()
    for file in sorted(resources.files(__package__).iterdir(), key=lambda file: file.name):
        if file.name.endswith((".py", ".toml")):
            total.update(file.read_bytes())
    return total.hexdigest()[:16]


def find(out: Path, seed: int) -> Metrics | None:
    """Return a folder's metrics if this version built it from this seed."""
    try:
        metrics = Metrics.model_validate_json((out / METRICS).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return metrics if (metrics.version, metrics.seed) == (version(), seed) else None


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Give an empty folder whose entries replace those of ``out`` if the block succeeds.

    The metrics vouch for the rest, so they leave first and arrive last.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=out) as name:
        fresh = Path(name)
        yield fresh
        (out / METRICS).unlink(missing_ok=True)
        for entry in sorted(fresh.iterdir(), key=lambda entry: entry.name == METRICS):
            old = out / entry.name
            if old.is_dir():
                shutil.rmtree(old)
            entry.replace(old)


def write_metrics(folder: Path, metrics: Metrics) -> None:
    """Write what ``find`` reads."""
    text = json.dumps(metrics.model_dump(), indent=2)
    (folder / METRICS).write_text(f"{text}\n", encoding="utf-8")
