"""``progress/run.json``: what an unfinished run began with, to go on with the same rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from capture.log import Snapshot
from capture.revision import model_revision
from trainer.checkpoint import write_json
from trainer.config import TrainerConfig

RUN = "run.json"
BESIDE_RUN = {"out", "baseline", "trackers", "scale"}  # settings that may change before it goes on


class Begun(BaseModel):
    """A run whose first step may have been done.

    Attributes:
        settings: By which it is known again, and the revision of the student it began with.
        snapshot: Of the log, as it was then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    settings: dict[str, JsonValue]
    snapshot: Snapshot

    @classmethod
    def of(cls, config: TrainerConfig, snapshot: Snapshot) -> Self:
        """What a run begins with."""
        return cls(settings=_settings(config), snapshot=snapshot)

    def write(self, config: TrainerConfig) -> None:
        """Put it beside what the run saves."""
        folder = config.out / "progress"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RUN, self.model_dump(mode="json"))


def begun_snapshot(config: TrainerConfig) -> Snapshot | None:
    """The snapshot that an unfinished run of the same settings began with, if there is one.

    It may have been set aside since, for a run of others.
    """
    found = list(_unfinished(config.out))
    settings = _settings(config) if found else {}
    return next((one.snapshot for one in found if one.settings == settings), None)


def _unfinished(out: Path) -> Iterator[Begun]:
    for folder in (out / "progress", *sorted(out.glob("progress-of-*"))):
        try:
            yield Begun.model_validate_json((folder / RUN).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError):
            continue


def _settings(config: TrainerConfig) -> dict[str, JsonValue]:
    started_from = config.teacher if config.student is None else config.student
    settings = config.model_dump(mode="json", exclude=BESIDE_RUN)
    return {**settings, "parent_revision": model_revision(started_from)}
