"""``retort log verify --repair``: what is whole comes into the log, the rest is counted as lost.

A row of a segment set aside is known by the byte at which its frame begins. The transaction that
adds it says so, and every later one adds only what none has said before: dying anywhere and
repairing again adds nothing twice.
"""

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from capture.commit import CommitReport, Committer
from capture.coverage import Coverage, is_within
from capture.damage import Damage, Reason
from capture.delta import (
    Change,
    apply,
    ensure_table,
    open_table,
    retry_conflicts,
    store_errors,
)
from capture.errors import SpoolError
from capture.forgotten import log_lock
from capture.frames import whole_batches
from capture.intent import COMMIT_LOCK, clear_interrupted
from capture.locks import locked, make_folder
from capture.quarantine import WHY
from capture.schema import TABLES
from capture.spool import (
    BAD,
    CLOSED,
    OPEN,
    Segment,
    SegmentName,
    living_writers,
    read_segment,
    segments,
)
from capture.store import left_behind, remove_file
from capture.verify import gather, orphans

# Frames of these are whole: another version of retort, or a person, can tell what they hold.
FOREIGN: frozenset[Reason] = frozenset({"format", "header", "schema"})
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Repaired:
    """What a repair did.

    Attributes:
        rows: Rows that came into the log from segments that had been set aside, by table.
        removed: Those segments, since everything whole of them is in the log.
        kept: Segments that stay: they are of another format, or hold other columns.
        lost: Rows that are nowhere, counted as dropped from now on, by reason.
        orphan_files: Parquet files removed that no version counts.
    """

    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    orphan_files: int = 0

    def document(self) -> dict[str, object]:
        """The result as JSON."""
        return {
            "rows": self.rows,
            "removed": self.removed,
            "kept": self.kept,
            "lost": dict(self.lost),
            "orphan_files": self.orphan_files,
        }


class Repairer(Committer):
    """Repairs one spool and its log while writers and committers go on."""

    def repair(self) -> Repaired:
        """Salvage what is whole, count what is lost, remove what nobody counts.

        A segment that was set aside goes once every whole row of it is in the log.

        Raises:
            LogError: If the store fails; the next call goes on from there.
        """
        spool, log, done = self._config.spool, self._config.log, Repaired()
        num_removed = -1
        while num_removed < len(done.removed):  # a copy may have waited behind one that went
            num_removed = len(done.removed)
            self._salvage_all(done, removes=True)
        with store_errors(spool), locked(spool / COMMIT_LOCK), log_lock(log):
            for table in TABLES:
                self._write_off(table, done)
                found = orphans(self._config, table)
                for path in left_behind(log / table, found, time.time()):
                    remove_file(log / table / path)
                    done.orphan_files += 1
        return done

    def salvage(self) -> Repaired:
        """Commit, and add every whole row of the segments set aside, each exactly once.

        Raises:
            LogError: If the store fails; the next call goes on from there.
        """
        done = Repaired()
        self._salvage_all(done, removes=False)
        return done

    def _salvage_all(self, done: Repaired, *, removes: bool) -> None:
        spool, done.kept = self._config.spool, []
        with store_errors(spool):
            make_folder(spool)
        self.commit()
        with store_errors(spool), locked(spool / COMMIT_LOCK), log_lock(self._config.log):
            for name, path in segments(spool, BAD):
                damage = _damage(path)
                if damage.reason in FOREIGN or name.table not in TABLES:
                    logger.warning("%s: kept: %s", path, damage)
                    done.kept.append(str(path))
                    continue
                retry_conflicts(partial(self._salvage, name, path, damage, done))
                if removes:
                    path.unlink()
                    done.removed.append(str(path))

    def _salvage(self, name: SegmentName, path: Path, damage: Damage, done: Repaired) -> None:
        """Add what is whole of one segment and not in the log yet."""
        log, table, report = self._config.log, name.table, CommitReport()
        clear_interrupted(self._config.spool, log, table)
        spans = Coverage(open_table(log, table)).spans(name)
        if spans is None:
            return
        found = whole_batches(path.read_bytes(), TABLES[table])
        new = [(frame, batch) for frame, batch in found if not is_within(frame.start, spans)]
        batches = tuple(batch for _, batch in new)
        places = tuple((frame.start, frame.end) for frame, _ in new)
        self._add(table, [Segment(name, batches, places, damage)], report, is_salvage=True)
        done.rows[table] += report.rows[table]

    def _write_off(self, table: str, done: Repaired) -> None:
        """Count rows that are nowhere as dropped, once their writers are dead and cannot tell more.

        Rows of a segment that is still there, whatever its state, are not lost yet.
        """
        spool, log = self._config.spool, self._config.log
        there = [name for suffix in (OPEN, CLOSED, BAD) for name, _ in segments(spool, suffix)]
        kept = {name.writer for name in there if name.table == table}
        evidence, _ = gather(self._config, table)
        dropped: dict[str, dict[str, int]] = {}
        for writer in evidence:
            if writer.lost and not writer.is_alive and writer.counts.writer not in kept:
                reason = "damaged" if writer.is_damaged else "vanished"
                dropped.setdefault(reason, {})[writer.counts.writer] = writer.lost
                done.lost[reason] += writer.lost
        if dropped:
            change = Change(dropped=dropped)
            retry_conflicts(lambda: apply(log / table, ensure_table(log, table), change))
        alive = {writer for name, writer in living_writers(spool) if name == table}
        for name, path in segments(spool, WHY):
            if name.table == table and name.writer not in kept | alive:
                path.unlink()


def _damage(path: Path) -> Damage:
    """What is wrong with a segment set aside; if nothing, it came too late."""
    try:
        return read_segment(path).damage or Damage("order", 0, 0)
    except SpoolError as error:
        return error.damage
