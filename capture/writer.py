"""The spool as its users see it: offer a row, never wait, know when it is safe."""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa

from capture.account import Account
from capture.schema import TABLES
from capture.spool import SegmentWriter

T = TypeVar("T")
Written = Callable[[], None]


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """When rows reach the disk, when segments are closed, how much may wait.

    Attributes:
        sync_seconds: Longest time a written row waits for ``fsync``.
        segment_bytes: Size at which a segment is closed.
        segment_seconds: Age at which a segment is closed.
        buffer_bytes: Most bytes of rows that wait to be written; beyond it rows are dropped.
    """

    sync_seconds: float = 0.1
    segment_bytes: int = 64 * 1024 * 1024
    segment_seconds: float = 5.0
    buffer_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Offer(Generic[T]):
    row: T
    size_bytes: int
    written: Written | None
    synced: bool


class Spool(Generic[T]):
    """One table's rows on their way to segments; written, synced and rotated by one thread.

    A store that fails loses rows, counted, and never a caller's time: after an error the next
    rows go to a fresh segment.
    """

    def __init__(
        self,
        folder: Path,
        table: str,
        encode: Callable[[Sequence[T]], pa.RecordBatch],
        *,
        limits: SpoolLimits,
    ) -> None:
        """Open a writer of its own in the folder, which is made if it is missing.

        Args:
            folder: On a local disk; writers of several processes may share it.
            table: Name of the table.
            encode: Turns rows into one record batch; called in the spool's thread.
            limits: See ``SpoolLimits``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        writer = uuid.uuid4().hex
        self.account = Account(folder, table, writer)
        self._segments = SegmentWriter(folder, table, TABLES[table], writer)
        self._encode = encode
        self._limits = limits
        self._offers: list[_Offer[T]] = []
        self._waiting_bytes = 0
        self._opened_at: float | None = None
        self._unsynced_since: float | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"spool-{table}", daemon=True)
        self._thread.start()

    def offer(
        self, row: T, size_bytes: int, *, written: Written | None = None, synced: bool = False
    ) -> bool:
        """Take a row without blocking.

        Args:
            row: What ``encode`` takes.
            size_bytes: Its rough size in memory.
            written: Called in the spool's thread when the row survives our death, or is lost.
            synced: Let ``written`` wait until the row survives a power loss.

        Returns:
            Whether the row was taken; False when too much is waiting, which is counted.
        """
        with self._changed:
            if self._waiting_bytes + size_bytes > self._limits.buffer_bytes:
                self.account.drop("overflow")
                return False
            self._offers.append(_Offer(row, size_bytes, written, synced))
            self._waiting_bytes += size_bytes
            self._changed.notify()
        return True

    def close(self) -> None:
        """Write what was taken, close the segment and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._offers and not self._closing:
                    self._changed.wait(self._seconds_to_deadline())
                offers, self._offers = self._offers, []
                self._waiting_bytes = 0
            self._write(offers)
            now = time.monotonic()
            if self._closing or self._is_due(self._unsynced_since, self._limits.sync_seconds, now):
                self._sync()
            if self._closing or self._must_rotate(now):
                self._rotate()
            if self._closing and not self._offers:
                self.account.save()
                return

    def _seconds_to_deadline(self) -> float | None:
        """Time until a sync or a rotation is due, None if neither will be."""
        due = [
            since + limit
            for since, limit in (
                (self._unsynced_since, self._limits.sync_seconds),
                (self._opened_at, self._limits.segment_seconds),
            )
            if since is not None
        ]
        return max(0.0, min(due) - time.monotonic()) if due else None

    @staticmethod
    def _is_due(since: float | None, seconds: float, now: float) -> bool:
        return since is not None and now - since >= seconds

    def _must_rotate(self, now: float) -> bool:
        is_full = self._segments.num_bytes >= self._limits.segment_bytes
        return self._is_due(self._opened_at, self._limits.segment_seconds, now) or (
            is_full and self._opened_at is not None
        )

    def _write(self, offers: list[_Offer[T]]) -> None:
        """Append everything as one batch; rows that cannot be encoded do not take others along."""
        if not offers:
            return
        batches = self._encoded(offers)
        try:
            for batch in batches:
                self._segments.append(batch)
                self.account.write(batch.num_rows)
                now = time.monotonic()
                self._opened_at = self._opened_at or now
                self._unsynced_since = self._unsynced_since or now
            if any(offer.synced for offer in offers):
                self._sync()
        except OSError:
            self._fail(sum(batch.num_rows for batch in batches))
        for offer in offers:
            if offer.written is not None:
                offer.written()

    def _encoded(self, offers: list[_Offer[T]]) -> list[pa.RecordBatch]:
        try:
            return [self._encode([offer.row for offer in offers])]
        except (ValueError, TypeError, pa.ArrowException):
            if len(offers) == 1:
                self.account.drop("encode")
                return []
            return [batch for offer in offers for batch in self._encoded([offer])]

    def _sync(self) -> None:
        try:
            self._segments.sync()
        except OSError:
            self._fail(0)
        self._unsynced_since = None
        self._save()

    def _rotate(self) -> None:
        try:
            self._segments.rotate()
        except OSError:
            self._fail(0)
        self._opened_at = None
        self._save()

    def _fail(self, rows: int) -> None:
        if rows:
            self.account.drop("store", rows)
        self._segments.abandon()
        self._opened_at = self._unsynced_since = None

    def _save(self) -> None:
        try:
            self.account.save()
        except OSError:
            return  # the counts stay in memory until the disk takes them again
