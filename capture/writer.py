"""The spool as its users see it: offer a row, never wait, know when it is safe."""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa

from capture.account import Account
from capture.frames import Rows
from capture.locks import create_locked, make_folder
from capture.schema import TABLES
from capture.spool import LOCK, SegmentWriter
from capture.syncer import Syncer

RETRY_SECONDS = 0.5
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
        holds_rows: Whether rows that the disk refuses wait too, instead of being dropped at once.
    """

    sync_seconds: float = 0.1
    segment_bytes: int = 64 * 1024 * 1024
    segment_seconds: float = 5.0
    buffer_bytes: int = 64 * 1024 * 1024
    holds_rows: bool = False


@dataclass(frozen=True, slots=True)
class _Offer(Generic[T]):
    row: T
    size_bytes: int
    written: Written | None
    synced: Written | None


class Spool(Generic[T]):
    """One table's rows on their way to segments: one thread writes, another waits for the disk.

    A store that fails loses rows, counted, and never a caller's time: after an error the next
    rows go to a fresh segment. The counts on disk never claim a row that is not there too.

    Attributes:
        account: What became of the rows; its owner counts those that begin.
    """

    def __init__(
        self,
        folder: Path,
        table: str,
        encode: Callable[[Sequence[T]], pa.RecordBatch | Rows],
        *,
        limits: SpoolLimits,
    ) -> None:
        """Open a writer of its own in the folder, which is made if it is missing.

        Args:
            folder: On a local disk; writers of several processes may share it.
            table: Name of the table.
            encode: Turns rows into one batch, a row each; called in the spool's thread.
            limits: See ``SpoolLimits``.
        """
        make_folder(folder)
        writer = uuid.uuid4().hex
        self._lock_path = folder / f"{table}-{writer}{LOCK}"
        self._lock_file = create_locked(self._lock_path)
        self._segments = SegmentWriter(folder, table, TABLES[table], writer)
        self.account = Account(folder, table, writer, self._on_account)
        self._syncer = Syncer(
            *(self._segments, self.account, limits.sync_seconds),
            on_error=self._on_error,
            tell=_tell,
        )
        self._encode = encode
        self._limits = limits
        self._offers: list[_Offer[T]] = []
        self._waiting_bytes = 0
        self._opened_at: float | None = None
        self._is_closing = False
        self._is_failing = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"spool-{table}", daemon=True)
        self._thread.start()
        self._syncer.start()

    def offer(
        self,
        row: T,
        size_bytes: int,
        *,
        written: Written | None = None,
        synced: Written | None = None,
    ) -> bool:
        """Take a row without blocking.

        Args:
            row: What ``encode`` takes.
            size_bytes: Its rough size in memory.
            written: Called in a thread of the spool when the row survives our death, or is lost.
            synced: Called likewise when it survives a power loss; syncs it at once.

        Returns:
            Whether the row was taken; if not (too much is waiting, or the spool is closed) it is
            counted as dropped and neither is ever called.
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
        self._syncer.changed()

    def _run(self) -> None:
        pa.array([0])  # Arrow looks for pandas on its first array: a second that no row shall wait
        is_last = False
        while not is_last:
            offers, is_last = self._take()
            if offers:
                refused = self._write(offers, may_wait=self._limits.holds_rows and not is_last)
                with self._wake:
                    self._waiting_bytes -= sum(offer.size_bytes for offer in offers)
                if refused:
                    self._hold(refused)
            is_full = self._segments.num_bytes >= self._limits.segment_bytes
            if is_last or is_full or self._seconds_to_rotation() == 0:
                self._rotate()
        self._syncer.close()
        try:
            self._lock_path.unlink(missing_ok=True)
        except OSError as error:
            self._on_error(error)  # recovery removes it
        finally:
            os.close(self._lock_file)

    def _take(self) -> tuple[list[_Offer[T]], bool]:
        """Wait for rows, for the segment's age or the end; whether these rows are the last."""
        with self._wake:
            if not self._offers and not self._is_closing:
                self._wake.wait(self._seconds_to_rotation())
            offers, self._offers = self._offers, []
            return offers, self._is_closing

    def _seconds_to_rotation(self) -> float | None:
        """Time until the segment under way is old enough, None if there is none."""
        if self._opened_at is None:
            return None
        return max(0.0, self._opened_at + self._limits.segment_seconds - time.monotonic())

    def _hold(self, refused: list[_Offer[T]]) -> None:
        """Let rows that the disk refused wait for a better moment."""
        with self._wake:
            self._offers[:0] = refused
            self._waiting_bytes += sum(offer.size_bytes for offer in refused)
            self._wake.wait_for(lambda: self._is_closing, RETRY_SECONDS)

    def _write(self, offers: list[_Offer[T]], *, may_wait: bool) -> list[_Offer[T]]:
        """Append everything as one batch and tell those who wait for it.

        Returns:
            Rows that the disk refuses and that may wait.
        """
        refused: list[_Offer[T]] = []
        for encoded, batch in self._encoded(offers):
            if self._append(batch):
                self._told(encoded)
            elif may_wait:
                refused += encoded
            else:
                self.account.drop("store", batch.num_rows)
                self._told(encoded)
        return refused

    def _append(self, batch: pa.RecordBatch | Rows) -> bool:
        if self._segments.current is not None and self._segments.current.has_failed:
            self._rotate()
        try:
            self._segments.append(batch)
        except OSError as error:
            self._on_error(error)
            self._abandon()
            return False
        self._is_failing = False
        self._opened_at = self._opened_at or time.monotonic()
        self.account.write(batch.num_rows)
        return True

    def _told(self, offers: list[_Offer[T]]) -> None:
        """Tell those whose rows are written, or lost; after a sync those who asked for one."""
        _tell(offer.written for offer in offers if offer.written is not None)
        waiting = [offer.synced for offer in offers if offer.synced is not None]
        if waiting:
            self._syncer.sync_for(waiting)

    def _encoded(
        self, offers: list[_Offer[T]]
    ) -> Iterator[tuple[list[_Offer[T]], pa.RecordBatch | Rows]]:
        """Encode all rows at once; one that cannot be encoded does not take others along."""
        try:
            batch = self._encode([offer.row for offer in offers])
        except Exception as error:  # noqa: BLE001  the caller's function; it must not end us
            if len(offers) > 1:
                for offer in offers:
                    yield from self._encoded([offer])
                return
            # Only the type: messages of encoders quote what they could not encode.
            logger.warning("a row cannot be encoded (%s); it is dropped", type(error).__name__)
            self.account.drop("encode")
            self._told(offers)
        else:
            yield offers, batch

    def _rotate(self) -> None:
        self._opened_at = None
        self._syncer.end()

    def _abandon(self) -> None:
        """Leave the segment to recovery; the next rows get a fresh one."""
        if self._segments.current is not None:
            self._segments.current.has_failed = True
        self._rotate()

    def _on_error(self, error: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            logger.warning("the spool's disk fails (%s): rows are dropped and counted", error)


def _tell(waiting: Iterable[Written]) -> None:
    for written in waiting:
        try:
            written()
        except Exception:
            logger.exception("a caller's callback failed after its row was written")
