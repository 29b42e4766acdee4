"""Rows on their way into the log that must not get there."""

import contextlib
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from capture.errors import SpoolError
from capture.forgotten import REASONS, forget, forgotten
from capture.removal import withdraw
from capture.schema import EXCHANGES
from capture.spool import CLOSED, OPEN, read_segment, segments
from capture.store import LogFolder

REDACTED: Literal["redacted"] = "redacted"
CLOCKS_APART = timedelta(days=1)


class Sieve:
    """Takes out rows of exchanges that are erased, or of which only redacted text is kept.

    Good for one transaction, under the log's lock; where there is none, for one on a table that
    was opened before.
    """

    def __init__(self, log: LogFolder, table: str, spool: Path) -> None:
        """Read the lists; for distributions also the exchanges still in the spool.

        Looking into the spool is not needed for anything to be right: it spares taking back
        rows that came first.
        """
        self._ids: dict[str, pa.Array] = {
            reason: forgotten(log, reason) for reason in REASONS[table]
        }
        if REDACTED in self._ids:
            self._ids[REDACTED] = pa.concat_arrays([self._ids[REDACTED], _marked_in(spool)])

    def sift(self, rows: pa.Table) -> tuple[pa.Table, dict[str, int]]:
        """Return the rows that may pass, and how many may not, by reason."""
        dropped = {}
        for reason, ids in self._ids.items():
            goes = pc.is_in(rows["exchange_id"], value_set=ids)
            if num_rows := pc.sum(goes).as_py():
                dropped[reason] = int(num_rows)
                rows = rows.filter(pc.invert(goes))
        return rows, dropped


def retract(log: LogFolder, exchanges: pa.Table) -> None:
    """Make sure no distributions of redacted exchanges are in the log, or ever will be.

    Called before the exchanges themselves are committed: whoever dies in between finds them in
    the spool again and repeats this.
    """
    marked = _marked(exchanges)
    if not marked.num_rows:
        return
    forget(log, REDACTED, marked["exchange_id"].to_pylist())
    first_day = date.fromisoformat(pc.min(marked["day"]).as_py()) - CLOCKS_APART
    ids = marked["exchange_id"].combine_chunks()
    withdraw(log, "logits", ids, first_day.isoformat())


def _marked(exchanges: pa.Table) -> pa.Table:
    return exchanges.filter(pc.equal(exchanges["capture"], REDACTED))


def _marked_in(spool: Path) -> pa.Array:
    """Exchanges in the spool's segments, open ones too, that are marked as redacted."""
    found = [EXCHANGES.empty_table()]
    for suffix in (OPEN, CLOSED):
        for name, path in segments(spool, suffix):
            if name.table != "exchanges":
                continue
            with contextlib.suppress(FileNotFoundError, SpoolError):  # the committer's to handle
                batches = read_segment(path).batches
                found.append(_marked(pa.Table.from_batches(batches, EXCHANGES)))
    return pa.concat_tables(found)["exchange_id"].combine_chunks()
