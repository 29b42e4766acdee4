"""From closed segments to the log, each row exactly once.

A transaction records which segments its files hold; they are unlinked only after it. Dying in
between leaves segments that the next commit finds covered, or files that an intent file names.
"""

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable

from capture.compaction import compact_due, remove_replaced
from capture.config import CaptureConfig
from capture.coverage import Coverage
from capture.damage import Damage
from capture.delta import (
    Change,
    DataFile,
    apply,
    days_of,
    ensure_table,
    new_path,
    num_salvages,
    retry_conflicts,
    store_errors,
    write_file,
)
from capture.errors import CaptureError, ConflictError, LogError, SpoolError
from capture.forgotten import log_lock
from capture.frames import Span
from capture.intent import COMMIT_LOCK, clear_interrupted, fulfil, intend
from capture.locks import locked
from capture.quarantine import set_aside
from capture.recovery import recover
from capture.retention import Expired, expire, today_utc
from capture.schema import TABLES
from capture.sieve import Sieve, retract
from capture.spool import BAD, CLOSED, OPEN, Segment, SegmentName, read_segment, segments
from capture.store import S3Path

GROUP_BYTES = 256 * 1024 * 1024
MAX_PAUSE_SECONDS = 60.0
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class CommitReport:
    """What one commit did.

    Attributes:
        rows: Rows added, by table.
        dropped: Rows that must not be in the log, by reason.
        segments: Segments whose rows are in the log now.
        files: Parquet files added, ``num_bytes`` in all.
        recovered: Segments of dead writers that were closed for them.
        quarantined: Segments set aside so far, by this and earlier commits.
    """

    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    dropped: dict[str, int] = field(default_factory=dict)
    segments: int = 0
    files: int = 0
    num_bytes: int = 0
    recovered: int = 0
    quarantined: int = 0


@dataclass(slots=True)
class Sifted:
    """Rows of some segments, those that may be in the log apart from those that may not.

    Attributes:
        rows: Those that may.
        num_rows: How many there were.
        segments: How many of each segment may, by writer and sequence.
        dropped: How many may not, by reason and writer.
        spans: Where those were read that are not read whole, by writer and sequence.
    """

    rows: pa.Table
    num_rows: int = 0
    segments: dict[str, dict[int, int]] = field(default_factory=dict)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    spans: dict[str, dict[int, Sequence[Span]]] = field(default_factory=dict)


class Committer:
    """Commits one spool to one log; several may run, those of one machine take turns."""

    def __init__(self, config: CaptureConfig, today: Callable[[], date] = today_utc) -> None:
        self._config = config
        self._today = today

    def commit(self) -> CommitReport:
        """Commit every closed segment.

        Raises:
            LogError: If the store fails; what is not committed stays in the spool.
        """
        spool, report = self._config.spool, CommitReport()
        if not spool.is_dir():
            return report
        with store_errors(spool), locked(spool / COMMIT_LOCK), log_lock(self._config.log):
            report.recovered = recover(spool)
            for table in TABLES:
                retry_conflicts(partial(self._commit_table, table, report))
            report.quarantined = len(list(spool.glob(f"*{BAD}")))
        return report

    def expire(self) -> Expired:
        """Erase the days that the configuration keeps no longer.

        Raises:
            LogError: If the store fails; the next call goes on from there.
        """
        return expire(self._config, self._today())

    def watch(self, stop: threading.Event) -> None:
        """Commit again and again until told to stop, then once more; wait for a failing store.

        Small files are joined in between. What is too old goes at the start, and whenever a new
        day begins, and so do files that were replaced more than a week ago.
        """
        failures, expired_on = 0, None
        while True:
            is_last, today = stop.is_set(), self._today()
            try:
                self.commit()
                self._compact()
                if expired_on != today:
                    self.expire()
                    remove_replaced(self._config)
                    expired_on = today
                failures = 0
            except CaptureError as error:
                failures += 1
                logger.warning("commit failed, rows stay in the spool: %s", error)
            if is_last:
                return
            stop.wait(min(self._config.commit_seconds * 2**failures, MAX_PAUSE_SECONDS))

    def _compact(self) -> None:
        """Join what is due; if somebody else changes the same files, the next time will do."""
        try:
            compact_due(self._config, time.time())
        except LogError as error:
            logger.warning("small files stay as they are for now: %s", error)

    def _commit_table(self, table: str, report: CommitReport) -> None:
        clear_interrupted(self._config.spool, self._config.log, table)
        for group in self._groups(table):
            self._commit_group(table, group, report)

    def _groups(self, table: str) -> Iterator[list[Path]]:
        """Segments to commit together, oldest first, of bounded size."""
        group: list[Path] = []
        num_bytes = 0
        for path in self._ready(table):
            size = path.stat().st_size
            if group and num_bytes + size > GROUP_BYTES:
                yield group
                group, num_bytes = [], 0
            group.append(path)
            num_bytes += size
        if group:
            yield group

    def _ready(self, table: str) -> list[Path]:
        """Closed segments that may be committed now; those already in the log are unlinked.

        A writer's segments are committed in order: one behind a segment that is still open (its
        disk failed, and recovery has not closed it yet) waits for it. One that turns up behind
        what the log has of its writer is set aside, unless the log has it too.
        """
        closed = [item for item in segments(self._config.spool, CLOSED) if item[0].table == table]
        if not closed:
            return []
        still_open = [name for name, _ in segments(self._config.spool, OPEN)]
        delta = ensure_table(self._config.log, table)
        ready: list[Path] = []
        late: list[tuple[SegmentName, Path]] = []
        for writer, items in itertools.groupby(closed, lambda item: item[0].writer):
            last = delta.transaction_version(writer) or 0
            gap = min((name.sequence for name in still_open if name.writer == writer), default=None)
            for name, path in items:
                if name.sequence <= last or num_salvages(delta, writer, name.sequence):
                    late.append((name, path))
                elif gap is None or name.sequence < gap:
                    ready.append(path)
        _settle_late(delta, late)
        return ready

    def _commit_group(self, table: str, paths: list[Path], report: CommitReport) -> None:
        """Add the rows of some segments in one transaction, then unlink the segments."""
        read = [(path, segment) for path in paths if (segment := _read(path))]
        self._add(table, [segment for _, segment in read], report)
        for path, segment in read:
            if segment.damage is None:
                path.unlink()
            else:
                set_aside(path, segment.damage, segment.num_rows, in_log=True)
        report.segments += len(read)

    def _add(
        self,
        table: str,
        read: Sequence[Segment],
        report: CommitReport,
        *,
        is_salvage: bool = False,
    ) -> None:
        """Add the rows of some segments in one transaction."""
        sifted = self._sift(table, read)
        if not sifted.num_rows:
            return
        if table == "exchanges":
            retract(self._config.log, sifted.rows)
        files = self._write_files(table, sifted.rows)
        change = Change(
            files,
            segments=sifted.segments,
            dropped=sifted.dropped,
            spans=sifted.spans,
            is_salvage=is_salvage,
        )
        delta = ensure_table(self._config.log, table)
        self._check_again(table, sifted.rows)
        apply(self._config.log / table, delta, change)
        fulfil(self._config.spool, table)
        report.rows[table] += sifted.rows.num_rows
        for reason, counts in sifted.dropped.items():
            report.dropped[reason] = report.dropped.get(reason, 0) + sum(counts.values())
        report.files += len(files)
        report.num_bytes += sum(file.num_bytes for file in files)

    def _sift(self, table: str, read: Sequence[Segment]) -> "Sifted":
        """Part the rows that may be in the log from those that may not."""
        sieve = Sieve(self._config.log, table, self._config.spool)
        sifted = Sifted(TABLES[table].empty_table())
        kept = [sifted.rows]
        for segment in read:
            rows, dropped = sieve.sift(pa.Table.from_batches(segment.batches, TABLES[table]))
            kept.append(rows)
            writer, sequence = segment.name.writer, segment.name.sequence
            sifted.num_rows += segment.num_rows
            sifted.segments.setdefault(writer, {})[sequence] = rows.num_rows
            if not segment.is_whole:
                sifted.spans.setdefault(writer, {})[sequence] = segment.spans
            for reason, count in dropped.items():
                counts = sifted.dropped.setdefault(reason, Counter())
                counts[writer] += count
        sifted.rows = pa.concat_tables(kept)
        return sifted

    def _check_again(self, table: str, rows: pa.Table) -> None:
        """Where there is no lock: see that no row has been forgotten while files were written.

        The table is open already, so who forgets one from here on refuses the transaction.
        """
        if isinstance(self._config.log, S3Path):
            _, forgotten = Sieve(self._config.log, table, self._config.spool).sift(rows)
            if forgotten:
                raise ConflictError(f"{self._config.log / table}: {forgotten} meanwhile; try again")

    def _write_files(self, table: str, rows: pa.Table) -> list[DataFile]:
        """Write a file per day, their names put down first."""
        days = {day: (new_path(day), part) for day, part in days_of(rows).items()}
        intend(self._config.spool, table, [path for path, _ in days.values()])
        folder = self._config.log / table
        return [write_file(folder, path, day, part) for day, (path, part) in days.items()]


def _read(path: Path) -> Segment | None:
    """Read a closed segment; one that cannot be read is set aside."""
    try:
        return read_segment(path)
    except SpoolError as error:
        set_aside(path, error.damage)
        return None


def _settle_late(delta: DeltaTable, late: Sequence[tuple[SegmentName, Path]]) -> None:
    """Unlink segments that the log has taken whole; set aside what it has not."""
    new = [(name, path) for name, path in late if not path.with_suffix(BAD).exists()]
    coverage = Coverage(delta if new else None)
    for name, path in new:
        if (spans := coverage.spans(name)) is None:
            path.unlink()
        elif segment := _read(path):
            damage = segment.damage or Damage("order", 0, 0)
            set_aside(path, damage, segment.num_rows, in_log=bool(spans))
