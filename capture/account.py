"""What became of every row that began: ``started = written + dropped + in flight``."""

import json
import threading
from collections import Counter
from pathlib import Path

SUFFIX = ".account.json"


class Account:
    """Counts of one writer, kept in a file beside its segments; safe to call from any thread.

    Attributes:
        path: The file, replaced whole by ``save``.
    """

    def __init__(self, folder: Path, table: str, writer: str) -> None:
        self.path = folder / f"{table}-{writer}{SUFFIX}"
        self._table = table
        self._writer = writer
        self._lock = threading.Lock()
        self._started = 0
        self._written = 0
        self._dropped: Counter[str] = Counter()
        self._saved = ""

    def start(self) -> None:
        """Count a row that began."""
        with self._lock:
            self._started += 1

    def write(self, rows: int) -> None:
        """Count rows that are in a segment now."""
        with self._lock:
            self._written += rows

    def drop(self, reason: str, rows: int = 1) -> None:
        """Count rows that will never be written."""
        with self._lock:
            self._dropped[reason] += rows

    def save(self) -> None:
        """Write the counts down if they have changed; a reader sees old or new, never half."""
        with self._lock:
            counts = {
                "table": self._table,
                "writer": self._writer,
                "started": self._started,
                "written": self._written,
                "dropped": dict(self._dropped),
            }
        text = json.dumps(counts)
        if text != self._saved:
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self.path)
            self._saved = text
