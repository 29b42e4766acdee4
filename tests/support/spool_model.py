"""What is promised of rows on their way into the log, and a spool that a test may ill-treat."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from capture.account import Account
from capture.config import CaptureConfig
from capture.delta import active_files, open_table
from capture.frames import walk
from capture.locks import create_locked
from capture.rows import encode_exchanges, encode_logits
from capture.schema import TABLES
from capture.spool import LOCK, OPEN, SegmentName, SegmentWriter
from tests.support.log_rows import exchange_row, logit_row


@dataclass
class Promised:
    """What a test did to a spool, and thus what the log must hold.

    Attributes:
        rows: Every row that was told as written, by table.
        hit: Those of them that damage touched.
        counted: How many its writer has counted on the disk, by table and writer.
        frames: Where each frame of a segment ends, and the rows in it.
    """

    rows: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in TABLES})
    hit: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in TABLES})
    counted: dict[tuple[str, str], int] = field(default_factory=dict)
    frames: dict[SegmentName, list[tuple[int, list[str]]]] = field(default_factory=dict)

    def places(self, name: SegmentName) -> list[tuple[int, int]]:
        """From and to where the frames of a segment are, its header and columns as one."""
        ends = [end for end, _ in self.frames[name]]
        return list(zip([0, *ends], ends, strict=False))

    def damage(self, name: SegmentName, start: int, end: int) -> None:
        """Promise nothing any more of rows in frames that these bytes touch."""
        begin = 0
        for stop, rows in self.frames[name]:
            if begin < end and start < stop:
                self.hit[name.table].update(rows)
            begin = stop


class LivingWriter:
    """One table's writer, as ``capture.writer.Spool`` is one, but each step when the test says."""

    def __init__(self, spool: Path, table: str, writer: str, promised: Promised) -> None:
        self.table = table
        self._spool = spool
        self._promised = promised
        self._writer = writer
        self._lock_path = spool / f"{table}-{writer}{LOCK}"
        self._lock = create_locked(self._lock_path)
        self._segments = SegmentWriter(spool, table, TABLES[table], writer)
        self._account = Account(spool, table, writer)
        self._num_written = 0

    def append(self, ids: list[str]) -> None:
        """Write rows in one frame; they are told as written."""
        for _ in ids:
            self._account.start()
        self._segments.append(encoded(self.table, ids))
        self._account.write(len(ids))
        self._num_written += len(ids)
        name = self._name
        if name not in self._promised.frames:
            self._promised.frames[name] = [(heads_end(name.path(self._spool, OPEN)), [])]
        self._promised.frames[name].append((self._segments.num_bytes, ids))
        self._promised.rows[self.table].update(ids)

    def save(self) -> None:
        """Bring what was written onto the disk, then its count."""
        if self._segments.current is not None:
            self._segments.current.sync()
        self._account.save()
        self._promised.counted[self.table, self._writer] = self._num_written

    def do(self, what: str) -> None:
        """Do one of a writer's steps, by its name; nothing is one too."""
        steps = {"save": self.save, "rotate": self._segments.rotate}
        steps |= {"end": self.end, "crash": self.crash}
        if what in steps:
            steps[what]()

    def end(self) -> None:
        """End well."""
        self._segments.rotate()
        self.save()
        self._lock_path.unlink()
        os.close(self._lock)

    def crash(self) -> None:
        """Die: locks are freed, nothing else happens any more."""
        self._segments.abandon()
        os.close(self._lock)

    @property
    def _name(self) -> SegmentName:
        return self._segments._name


def encoded(table: str, ids: list[str]) -> pa.RecordBatch:
    if table == "exchanges":
        return encode_exchanges([exchange_row(name) for name in ids])
    return encode_logits([logit_row(name, seed=int(name)) for name in ids])


def heads_end(path: Path) -> int:
    """Where the first batch of a segment begins."""
    return walk(memoryview(path.read_bytes()))[0][1].end


def rows_in_log(config: CaptureConfig, name: str) -> Counter[str]:
    """How often each row is in a table."""
    table = open_table(config.log, name)
    found: Counter[str] = Counter()
    for file in active_files(table) if table else ():
        path = config.log / name / file.path
        rows = pq.read_table(path, columns=["exchange_id"], partitioning=None)
        found.update(rows["exchange_id"].to_pylist())
    return found
