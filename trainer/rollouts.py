"""``rollouts.json``: whose answers a log of rollouts holds, and whether a run may learn from them.

The folder of such a log holds this file beside the tables. Its rows are answers of a student;
the distributions are the teacher's. They stop being the student's own once it has learned.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from capture.errors import ConfigError
from capture.log import Snapshot
from capture.revision import model_revision
from capture.store import LogFolder
from trainer.checkpoint import write_json
from trainer.config import TrainerConfig
from trainer.errors import DatasetError

ROLLOUTS = "rollouts.json"


class Rollouts(BaseModel):
    """What decides the rows of a log of rollouts.

    Attributes:
        student_revision: Whose answers they are.
        teacher_revision: Who scored them.
        snapshot: Of the log whose prompts were asked.
        heldout_fraction: Share of the prompts that was held out from that student.
        temperature: Of the answers.
        max_new_tokens: Of each answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    student_revision: str
    teacher_revision: str
    snapshot: Snapshot
    heldout_fraction: float
    temperature: float
    max_new_tokens: int

    def check(self, config: TrainerConfig) -> None:
        """See that these are the own answers of the student that a run starts from.

        Raises:
            ConfigError: If they are not, or the run would train on prompts that were held out.
        """
        if config.student is None:
            raise ConfigError(
                f"[trainer].log is {config.log}: it holds answers of a student; name the folder "
                f"of that student ({self.student_revision}) with student"
            )
        revision = model_revision(config.student)
        if revision != self.student_revision:
            raise ConfigError(
                f"[trainer].student is {config.student} ({revision}), but {config.log} holds "
                f"answers of {self.student_revision}: they are not its own; let it answer by "
                "`retort distill rollouts` into another folder, or name the student that answered"
            )
        if config.heldout_fraction != self.heldout_fraction:
            raise ConfigError(
                f"[trainer].heldout_fraction is {config.heldout_fraction}, but the prompts of "
                f"{config.log} were divided by {self.heldout_fraction}: set it to that, so that "
                "what was held out stays so"
            )

    def write(self, folder: Path) -> None:
        """Put the file in place whole."""
        write_json(folder / ROLLOUTS, self.model_dump(mode="json"))


def read_rollouts(log: LogFolder) -> Rollouts | None:
    """Read the file; None if the log is an ordinary one, as every log in a bucket is.

    Raises:
        DatasetError: If it is damaged or of another format.
    """
    if not isinstance(log, Path) or not (log / ROLLOUTS).is_file():
        return None
    try:
        return Rollouts.model_validate_json((log / ROLLOUTS).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DatasetError(
            f"{log / ROLLOUTS}: {key}: {first['msg']}; make the rollouts again"
        ) from error
