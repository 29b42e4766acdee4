"""The spool as its users see it: offer a row, never wait, know when it is safe."""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa

from capture.account import Account
from capture.locks import create_locked
from capture.schema import TABLES
from capture.spool import LOCK, SegmentWriter

FILLING_FRACTION = 0.75  # the rest of the buffer is for rows already under way
T = TypeVar("T")
Written = Callable[[], None]
logger = logging.getLogger(__name__)


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
    rows go to a fresh segment. The counts on disk never claim a row that is not there too.

    Attributes:
        account: What became of the rows; its owner counts those that begin.
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
            encode: Turns rows into one record batch, a row each; called in the spool's thread.
            limits: See ``SpoolLimits``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        writer = uuid.uuid4().hex
        self._lock_path = folder / f"{table}-{writer}{LOCK}"
        self._lock_file = create_locked(self._lock_path)
        self.account = Account(folder, table, writer, self._on_account)
        self._segments = SegmentWriter(folder, table, TABLES[table], writer)
        self._encode = encode
        self._limits = limits
        self._offers: list[_Offer[T]] = []
        self._waiting_bytes = 0
        self._opened_at: float | None = None
        self._changed_at: float | None = None  # since when something is not on the disk
        self._is_closing = False
        self._is_failing = False
        self._wake = threading.Condition()
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
            Whether the row was taken; if not (too much is waiting, or the spool is closed) it is
            counted as dropped and ``written`` is never called.
        """
        with self._wake:
            is_full = self._waiting_bytes + size_bytes > self._limits.buffer_bytes
            if not is_full and not self._is_closing:
                self._offers.append(_Offer(row, size_bytes, written, synced))
                self._waiting_bytes += size_bytes
                self._wake.notify()
                return True
        self.account.drop("overflow" if is_full else "closed")
        return False

    @property
    def is_filling(self) -> bool:
        """Whether so much waits that rows begun from now on may find no room."""
        return self._waiting_bytes > self._limits.buffer_bytes * FILLING_FRACTION

    def close(self) -> None:
        """Write what was taken, close the segment and stop; safe to call twice."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    def _on_account(self) -> None:
        """Make sure that changed counts reach the disk even if no row follows."""
        with self._wake:
            if self._changed_at is None:
                self._changed_at = time.monotonic()
                self._wake.notify()

    def _run(self) -> None:
        pa.array([0])  # Arrow looks for pandas on its first array: a second that no row shall wait
        is_last = False
        while not is_last:
            offers, is_last = self._take()
            if offers:
                self._write(offers)
                with self._wake:
                    self._waiting_bytes -= sum(offer.size_bytes for offer in offers)
            if is_last or _is_due(self._changed_at, self._limits.sync_seconds):
                self._settle()
            is_full = self._segments.num_bytes >= self._limits.segment_bytes
            if is_last or is_full or _is_due(self._opened_at, self._limits.segment_seconds):
                self._rotate()
        self._settle()
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock_file)

    def _take(self) -> tuple[list[_Offer[T]], bool]:
        """Wait for rows, a deadline or the end; whether these rows are the last."""
        with self._wake:
            if not self._offers and not self._is_closing:
                self._wake.wait(self._seconds_to_deadline())
            offers, self._offers = self._offers, []
            return offers, self._is_closing

    def _seconds_to_deadline(self) -> float | None:
        """Time until a sync or a rotation is due, None if neither will be."""
        deadlines = [
            since + limit
            for since, limit in (
                (self._changed_at, self._limits.sync_seconds),
                (self._opened_at, self._limits.segment_seconds),
            )
            if since is not None
        ]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _write(self, offers: list[_Offer[T]]) -> None:
        """Append everything as one batch, then tell those who wait for it."""
        for batch in self._encoded(offers):
            try:
                self._segments.append(batch)
            except OSError as error:
                self._fail(error)
                self.account.drop("store", batch.num_rows)
            else:
                self._is_failing = False
                self._opened_at = self._opened_at or time.monotonic()
                self.account.write(batch.num_rows)
        _tell(offer for offer in offers if not offer.synced)
        strict = [offer for offer in offers if offer.synced]
        if strict:
            self._sync()
            _tell(strict)

    def _encoded(self, offers: list[_Offer[T]]) -> list[pa.RecordBatch]:
        """Encode all rows at once; one that cannot be encoded does not take others along."""
        try:
            return [self._encode([offer.row for offer in offers])]
        except Exception as error:  # noqa: BLE001  the caller's function; it must not end us
            if len(offers) > 1:
                return [batch for offer in offers for batch in self._encoded([offer])]
            # Only the type: messages of encoders quote what they could not encode.
            logger.warning("a row cannot be encoded (%s); it is dropped", type(error).__name__)
            self.account.drop("encode")
            return []

    def _sync(self) -> None:
        try:
            self._segments.sync()
        except OSError as error:
            self._fail(error)

    def _settle(self) -> None:
        """Bring rows onto the disk, then their counts."""
        self._changed_at = None
        self._sync()
        try:
            self.account.save()
        except OSError as error:
            self._fail(error)
            self._changed_at = time.monotonic()

    def _rotate(self) -> None:
        self._opened_at = None
        try:
            self._segments.rotate()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Leave the segment to recovery; the next rows get a fresh one."""
        if not self._is_failing:
            self._is_failing = True
            logger.warning("the spool's disk fails (%s): rows are dropped and counted", error)
        self._segments.abandon()
        self._opened_at = None


def _is_due(since: float | None, seconds: float) -> bool:
    return since is not None and time.monotonic() - since >= seconds


def _tell(offers: Iterable[_Offer[T]]) -> None:
    for offer in offers:
        if offer.written is None:
            continue
        try:
            offer.written()
        except Exception:
            logger.exception("a caller's callback failed after its row was written")
