"""What may be wrong with a spool segment, and where."""

from dataclasses import dataclass
from typing import Literal

Reason = Literal["checksum", "cut short", "format", "header", "schema", "batch", "order"]
SENTENCES: dict[Reason, str] = {
    "checksum": "it does not match its checksum",
    "cut short": "it is cut short, or its length was altered",
    "format": "commit it with the version of retort that wrote it",
    "header": "it is not the header of this file",
    "schema": "it names other columns than the table has",
    "batch": "it is no record batch of these columns",
    "order": "a later segment of its writer is in the log already",
}


@dataclass(frozen=True, slots=True)
class Damage:
    """Where a segment stops being whole, and why.

    Attributes:
        frame: Number of the frame: 0 is the header, 1 the schema, each further one a batch.
        at_byte: Where it begins.
        detail: What was found there.
    """

    reason: Reason
    frame: int
    at_byte: int
    detail: str = ""

    def __str__(self) -> str:
        """Where and why, in words."""
        says = "; ".join(filter(None, (self.detail, SENTENCES[self.reason])))
        return f"frame {self.frame} at byte {self.at_byte}: {says}"
