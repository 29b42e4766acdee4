"""From the engine's steps to rows in the spool, in a thread of the tap's own.

Nothing here knows vLLM: a model runner's adapter says which choice each logits row belongs to.
The engine's thread appends a step to a queue and goes on; every ``TICK_SECONDS`` our thread cuts
all steps that came into pieces at once, so that nothing in Python happens per token.

The engine tells nobody when a completion has ended, so a choice is written when its last token
is a stop token or its length is reached, or else (stop strings, aborts, preemption) when nothing
was recorded for it for a while: ``LINGER_SECONDS`` once it has left the batch, ``IDLE_SECONDS`` as
long as no further step has shown that it left. If it goes on after all, a longer row follows and
readers take the longest.
"""

import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from capture.choice import Choice, TapConfig
from capture.piece import Rows, cut
from capture.rows import LogitRow
from capture.schema import Flag

Load = Callable[[], Rows]
logger = logging.getLogger(__name__)
TICK_SECONDS = 0.1
LINGER_SECONDS = 2.0
IDLE_SECONDS = 10.0
FORGET_SECONDS = 120.0
REFRESH_SECONDS = 0.1  # of quiet before tokens are read anew
MAX_PENDING_BYTES = 64 * 1024 * 1024  # of steps whose rows nobody has looked at
MAX_HELD_BYTES = 256 * 1024 * 1024  # of what was recorded for choices under way


class Ledger(Protocol):
    """Counts of what began and what was lost."""

    def start(self) -> None:
        """Count a choice that began."""

    def drop(self, reason: str) -> None:
        """Count a choice that will never be written."""


class RowSpool(Protocol):
    """Where finished rows go."""

    @property
    def account(self) -> Ledger:
        """The spool's counts."""

    def offer(self, row: LogitRow, size_bytes: int) -> bool:
        """Take a row without blocking, or count it as dropped."""

    def close(self) -> None:
        """Write everything taken."""


class Recorder:
    """Assembles choices from steps and hands them to the spool.

    ``begin`` and ``push`` are called by the engine's thread and never block. What does not fit
    into memory is dropped, and the choices it belongs to end up flagged incomplete.
    """

    def __init__(self, spool: RowSpool, config: TapConfig) -> None:
        """Start the thread.

        Args:
            spool: Where rows go.
            config: The tap's settings.
        """
        self._spool = spool
        self._config = config
        self._begun: collections.deque[Choice] = collections.deque()
        self._pending: collections.deque[tuple[Load, int]] = collections.deque()
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._pushed_bytes = 0  # the engine's thread counts these, ours the taken ones
        self._taken_bytes = 0
        self._open: dict[int, Choice] = {}
        self._held_bytes = 0
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="retort-tap", daemon=True)
        self._thread.start()

    def begin(self, choice: Choice) -> None:
        """Account for a choice that has entered the engine."""
        self._begun.append(choice)
        if not choice.start:  # else it is the rest of one that was counted
            self._spool.account.start()
        if not self._open:  # else it looks within a tick, and being woken would stall the engine
            self._wake.set()

    def push(self, load: Load, num_bytes: int) -> None:
        """Take one step.

        Args:
            load: Returns its rows; called in our thread, it may wait for copies from a device.
            num_bytes: What it holds in memory.
        """
        if self._pushed_bytes - self._taken_bytes < MAX_PENDING_BYTES:
            self._pending.append((load, num_bytes))
            self._pushed_bytes += num_bytes

    def call(self, function: Callable[[], None]) -> None:
        """Let our thread call a function once it has taken every row pushed before."""
        self._calls.append(function)

    def close(self) -> None:
        """Write what there is and stop; safe to call twice."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=10.0)
        self._spool.close()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(TICK_SECONDS if self._open or self._begun else None)
            self._wake.clear()
            self._work(time.monotonic())
        self._work(time.monotonic() + FORGET_SECONDS)

    def _work(self, now: float) -> None:
        try:
            self._drain()
            self._sweep(now)
        except Exception:  # the engine must not notice, and later choices must not suffer
            logger.exception("the tap could not record a step; its choices will be incomplete")

    def _drain(self) -> None:
        """Give every pending row to its choice, then make the calls that came behind them."""
        calls = [self._calls.popleft() for _ in range(len(self._calls))]
        steps = [self._pending.popleft() for _ in range(len(self._pending))]
        while self._begun:  # after the steps were taken: a choice begins before its first row
            choice = self._begun.popleft()
            self._open[choice.serial] = choice
        if steps:
            self._take(steps)
        for call in calls:
            call()

    def _take(self, steps: Sequence[tuple[Load, int]]) -> None:
        self._taken_bytes += sum(num_bytes for _, num_bytes in steps)  # even if they cannot be read
        rows = Rows.joined([load() for load, _ in steps])
        now = time.monotonic()
        for serial, piece in cut(rows):
            owner = self._open.get(serial)
            if owner is None:
                continue
            if self._held_bytes > MAX_HELD_BYTES:
                owner.flags |= Flag.INCOMPLETE
                continue
            owner.touched_at = now
            owner.extend(piece)
            self._held_bytes += piece.num_bytes

    def _sweep(self, now: float) -> None:
        """Write choices that have ended or gone quiet; forget those that never come back."""
        for choice in reversed(list(self._open.values())):
            if choice.is_closed:
                continue  # a later one, which comes first here, went on with it
            quiet = now - choice.touched_at
            if quiet >= REFRESH_SECONDS:
                choice.look_again()
            if choice.has_ended:
                self._write(choice)
                self._close(choice)
            elif quiet >= (IDLE_SECONDS if choice.is_scheduled else LINGER_SECONDS):
                self._write(choice)
                if quiet >= FORGET_SECONDS:
                    self._close(choice)

    def _write(self, choice: Choice) -> None:
        """Hand a choice to the spool unless nothing is new since it was last written."""
        is_empty = choice.length == choice.start
        if is_empty or (choice.start and not self._continue(choice)):
            return
        length = len(choice.completion_ids())
        if length <= choice.written_length:
            return
        if choice.written_length:
            self._spool.account.start()  # a further row of the same choice, longer than the last
        choice.written_length = length
        row = choice.to_row(self._config, datetime.now(UTC).strftime("%Y-%m-%d"))
        self._spool.offer(row, row.num_bytes)

    def _continue(self, choice: Choice) -> bool:
        """Put the rest of a preempted choice behind what was recorded of it before."""
        for earlier in list(self._open.values()):
            if earlier.is_continued_by(choice) and (not earlier.start or self._continue(earlier)):
                before = choice.num_bytes
                choice.continue_from(earlier)
                self._held_bytes += choice.num_bytes - before
                self._forget(earlier)
                return True
        self._spool.account.start()
        self._spool.account.drop("torn")
        self._forget(choice)
        return False

    def _close(self, choice: Choice) -> None:
        self._forget(choice)
        if not choice.written_length and not choice.start:
            self._spool.account.drop("empty")

    def _forget(self, choice: Choice) -> None:
        if not choice.is_closed:
            choice.close()
            del self._open[choice.serial]
            self._held_bytes -= choice.num_bytes
