"""A thread that waits for ``fsync``, so that the one that writes rows never does."""

import threading
import time
from collections.abc import Callable, Iterable

from capture.account import Account
from capture.spool import OpenSegment, SegmentWriter

Told = Callable[[], None]


class Syncer:
    """Syncs the segment under way, closes those that have ended, saves the counts.

    The counts saved were taken before the sync: they never claim a row that is not on the disk.
    """

    def __init__(
        self,
        segments: SegmentWriter,
        account: Account,
        sync_seconds: float,
        *,
        on_error: Callable[[OSError], None],
        tell: Callable[[Iterable[Told]], None],
    ) -> None:
        """Prepare the thread; ``start`` starts it.

        Args:
            segments: Another thread appends to it; only ``end`` takes its segment away.
            account: Counts to save.
            sync_seconds: Longest time that something written waits.
            on_error: Told what the disk refused, in our thread.
            tell: Calls those who waited, in our thread.
        """
        self._segments = segments
        self._account = account
        self._sync_seconds = sync_seconds
        self._on_error = on_error
        self._tell = tell
        self._wake = threading.Condition()
        self._ended: list[OpenSegment] = []
        self._waiting: list[Told] = []
        self._changed_at: float | None = None  # since when something is not on the disk
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="spool-syncer", daemon=True)

    def start(self) -> None:
        """Begin to sync."""
        self._thread.start()

    def changed(self) -> None:
        """Sync and save within the time allowed."""
        with self._wake:
            if self._changed_at is None:
                self._changed_at = time.monotonic()
                self._wake.notify()

    def sync_for(self, waiting: Iterable[Told]) -> None:
        """Sync at once, then tell those who wait for it."""
        with self._wake:
            self._waiting += waiting
            self._wake.notify()

    def end(self) -> None:
        """Close the segment under way, if any; the next row begins another."""
        with self._wake:
            segment, self._segments.current = self._segments.current, None
            if segment is not None:
                self._ended.append(segment)
                self._wake.notify()

    def close(self) -> None:
        """Bring everything onto the disk and stop; nobody appends any more."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            with self._wake:
                if not self._has_work():
                    self._wake.wait(self._seconds_to_deadline())
                is_last = self._is_closing
                has_work = self._has_work()
            if has_work:
                self._settle()

    def _has_work(self) -> bool:
        return bool(self._ended or self._waiting) or self._is_due()

    def _is_due(self) -> bool:
        return self._is_closing or self._seconds_to_deadline() == 0

    def _seconds_to_deadline(self) -> float | None:
        """Time until rows and counts must be on the disk, None if they are."""
        if self._changed_at is None:
            return None
        return max(0.0, self._changed_at + self._sync_seconds - time.monotonic())

    def _settle(self) -> None:
        """Bring rows onto the disk, then their counts; then tell who waits."""
        counts = None
        if self._is_due():
            self._changed_at = None
            counts = self._account.counts()
        with self._wake:  # after the counts: whatever they count is in one of these
            ended, self._ended = self._ended, []
            waiting, self._waiting = self._waiting, []
            current = self._segments.current
        for segment in ended:
            self._try(segment.close)
        if current is not None:
            self._try(current.sync)
        if counts is not None and not self._try(lambda: self._account.save(counts)):
            self.changed()
        self._tell(waiting)

    def _try(self, step: Callable[[], None]) -> bool:
        try:
            step()
        except OSError as error:
            self._on_error(error)
            return False
        return True
