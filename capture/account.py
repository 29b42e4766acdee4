"""What became of every row that began: ``started = written + dropped + in flight``."""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

SUFFIX = ".account.json"


class Counts(BaseModel):
    """One writer's counts as its account file holds them.

    Attributes:
        table: Table of the rows.
        writer: Id that the writer's segments carry in their names.
        started: Rows that began.
        written: Rows in a segment.
        dropped: Rows that will never be written, by reason.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    writer: str
    started: NonNegativeInt = 0
    written: NonNegativeInt = 0
    dropped: dict[str, NonNegativeInt] = {}


class Account:
    """Counts of one writer, kept in a file beside its segments; safe to call from any thread.

    Attributes:
        path: The file, replaced whole by ``save``.
    """

    def __init__(
        self, folder: Path, table: str, writer: str, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """Begin at zero.

        Args:
            folder: The spool.
            table: Table of the rows.
            writer: Id of the writer.
            on_change: Called on the first change after each ``save``, by whoever changes.
        """
        self.path = folder / f"{table}-{writer}{SUFFIX}"
        self._table = table
        self._writer = writer
        self._on_change = on_change
        self._lock = threading.Lock()
        self._started = 0
        self._written = 0
        self._dropped: Counter[str] = Counter()
        self._is_saved = True

    def start(self) -> None:
        """Count a row that began."""
        self._count(started=1)

    def write(self, rows: int) -> None:
        """Count rows that are in a segment now."""
        self._count(written=rows)

    def drop(self, reason: str, rows: int = 1) -> None:
        """Count rows that will never be written."""
        self._count(dropped={reason: rows})

    @property
    def num_dropped(self) -> int:
        """Rows that will never be written, for whatever reason."""
        with self._lock:
            return self._dropped.total()

    def counts(self) -> Counts | None:
        """The counts to be saved; None if they have not changed since they were last asked for."""
        with self._lock:
            if self._is_saved:
                return None
            self._is_saved = True
            return Counts(
                table=self._table,
                writer=self._writer,
                started=self._started,
                written=self._written,
                dropped=dict(self._dropped),
            )

    def save(self, counts: Counts | None = None) -> None:
        """Write counts down, by default those of now; a reader sees old or new, never half.

        Raises:
            OSError: If the disk refuses; the counts stay and the next call tries again.
        """
        counts = counts or self.counts()
        if counts is None:
            return
        temporary = self.path.with_suffix(".tmp")
        try:
            temporary.write_text(counts.model_dump_json(), encoding="utf-8")
            temporary.replace(self.path)
        except OSError:
            self._is_saved = False
            raise

    def _count(
        self, started: int = 0, written: int = 0, dropped: dict[str, int] | None = None
    ) -> None:
        with self._lock:
            self._started += started
            self._written += written
            self._dropped.update(dropped or {})
            was_saved, self._is_saved = self._is_saved, False
        if was_saved:
            self._on_change()


def read_counts(folder: Path) -> dict[tuple[str, str], Counts]:
    """Every readable account of a spool by table and writer.

    A file cut short by a power loss is left out: its writer's rows are then known from its
    segments alone.
    """
    accounts: dict[tuple[str, str], Counts] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            counts = Counts.model_validate_json(path.read_bytes())
        except (ValidationError, FileNotFoundError):
            continue
        accounts[counts.table, counts.writer] = counts
    return accounts
