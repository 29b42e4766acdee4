"""Damaged segments are set aside, and why is told beside them.

``TABLE-WRITER-SEQUENCE.why`` outlives its ``.bad``: as long as it is there, rows of that writer
that are nowhere were lost to damage.
"""

import logging
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from capture.damage import Damage
from capture.errors import SpoolError
from capture.spool import BAD, SegmentName, read_segment, segments

WHY = ".why"
logger = logging.getLogger(__name__)


class Note(BaseModel):
    """Why a segment was set aside.

    Attributes:
        damage: Where its first frame is that is not whole, and what is wrong with that.
        rows_before: Whole rows in front of that.
        in_log: Whether these are in the log.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    damage: Damage
    rows_before: NonNegativeInt = 0
    in_log: bool = False

    def document(self) -> dict[str, object]:
        """The reason as JSON, in one level."""
        return {**asdict(self.damage), "rows_before": self.rows_before, "in_log": self.in_log}

    def __str__(self) -> str:
        """Tell it in words."""
        where = "in the log" if self.in_log else "not in the log"
        return f"{self.damage}; {self.rows_before} whole rows before it, {where}"


def set_aside(path: Path, damage: Damage, rows_before: int = 0, *, in_log: bool = False) -> None:
    """Keep a segment from being committed until it is repaired, and say why.

    A disk that has no room for the reason does not keep the segment in the way. A copy of one
    that has been set aside already stays where it is until that one is repaired.
    """
    note = Note(damage=damage, rows_before=rows_before, in_log=in_log)
    aside = path.with_suffix(BAD)
    if aside.exists():
        logger.warning("%s: left where it is, as there is %s already: %s", path, aside, note)
        return
    logger.warning("%s: set aside as %s: %s", path, BAD, note)
    try:
        _write(path.with_suffix(WHY), note)
    except OSError as error:
        logger.warning("%s: its reason is not kept: %s", path, error)
    path.rename(aside)


def quarantined(folder: Path) -> list[tuple[SegmentName, Note]]:
    """Segments set aside, and why; one whose reason was not kept is looked at again."""
    found = []
    for name, path in segments(folder, BAD):
        try:
            note = Note.model_validate_json(path.with_suffix(WHY).read_bytes())
        except (FileNotFoundError, ValidationError):
            note = Note(damage=_look(path))
        found.append((name, note))
    return found


def damaged_writers(folder: Path, table: str) -> set[str]:
    """Writers of which a segment of a table was damaged, repaired or not."""
    named = [name for suffix in (BAD, WHY) for name, _ in segments(folder, suffix)]
    return {name.writer for name in named if name.table == table}


def _look(path: Path) -> Damage:
    try:
        damage = read_segment(path).damage
    except SpoolError as error:
        return error.damage
    return damage or Damage("order", 0, 0)


def _write(path: Path, note: Note) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(note.model_dump_json(), encoding="utf-8")
    temporary.replace(path)
