"""``progress/run.json``: what an unfinished run began with, to go on with the same rows."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from capture.log import Snapshot
from trainer.checkpoint import write_json
from trainer.config import TrainerConfig

RUN = "run.json"
BESIDE_RUN = {"out", "baseline", "trackers", "scale"}  # settings that may change before it goes on


class Begun(BaseModel):
    """A run whose first step may have been done.

    Attributes:
        settings: By which it is known again.
        snapshot: Of the log, as it was then.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    settings: dict[str, JsonValue]
    snapshot: Snapshot

    @classmethod
    def of(cls, config: TrainerConfig, snapshot: Snapshot) -> Self:
        """What a run begins with."""
        settings = config.model_dump(mode="json", exclude=BESIDE_RUN)
        return cls(settings=settings, snapshot=snapshot)

    def write(self, config: TrainerConfig) -> None:
        """Put it beside what the run saves."""
        folder = config.out / "progress"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RUN, self.model_dump(mode="json"))


def begun_snapshot(config: TrainerConfig) -> Snapshot | None:
    """The snapshot that an unfinished run of the same settings began with, if there is one."""
    try:
        text = (config.out / "progress" / RUN).read_text(encoding="utf-8")
        found = Begun.model_validate_json(text)
    except (FileNotFoundError, ValidationError):
        return None
    return found.snapshot if found == Begun.of(config, found.snapshot) else None
