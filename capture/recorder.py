"""From the engine's steps to rows in the spool, in a thread of the tap's own.

Nothing here knows vLLM: a model runner's adapter says which choice each logits row belongs to.
The engine tells nobody when a completion has ended, so a choice is written when its last token
is a stop token or its length is reached, or else (stop strings, aborts, preemption) when nothing
was recorded for it for a while: ``LINGER_SECONDS`` once it has left the batch, ``IDLE_SECONDS`` as
long as no further step has shown that it left. If it goes on after all, a longer row follows and
readers take the longest.
"""

import collections
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from capture.choice import Choice, Step, TapConfig
from capture.rows import LogitRow

LINGER_SECONDS = 2.0
IDLE_SECONDS = 10.0
FORGET_SECONDS = 120.0
SWEEP_SECONDS = 0.01
MAX_PENDING_STEPS = 1024


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


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """One step's selection with the owner and position of each of its rows."""

    load: Callable[[], Step]
    owners: list[Choice]
    positions: list[int]


class Recorder:
    """Assembles choices from steps and hands them to the spool.

    ``begin`` and ``push`` are called by the engine's thread and never block; when more than
    ``MAX_PENDING_STEPS`` wait, a step is dropped and its choices end up flagged incomplete.
    """

    def __init__(self, spool: RowSpool, config: TapConfig) -> None:
        self._spool = spool
        self._config = config
        self._pending: collections.deque[Recorded] = collections.deque()
        self._open: set[Choice] = set()
        self._begun: collections.deque[Choice] = collections.deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="retort-tap", daemon=True)
        self._thread.start()

    def begin(self, choice: Choice) -> None:
        """Account for a choice that has entered the engine."""
        self._begun.append(choice)
        self._spool.account.start()

    def push(self, recorded: Recorded) -> None:
        """Take one step's rows; the device copy is awaited in our thread."""
        if len(self._pending) < MAX_PENDING_STEPS:
            self._pending.append(recorded)
            self._wake.set()

    def close(self) -> None:
        """Write what there is and stop."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=10.0)
        self._spool.close()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(SWEEP_SECONDS if self._open else None)
            self._wake.clear()
            self._drain()
            self._sweep(time.monotonic())
        self._drain()
        self._sweep(time.monotonic() + FORGET_SECONDS)

    def _drain(self) -> None:
        """Give every pending row to its choice."""
        while self._begun:
            self._open.add(self._begun.popleft())
        while self._pending:
            recorded = self._pending.popleft()
            step = recorded.load()
            now = time.monotonic()
            owners = zip(recorded.owners, recorded.positions, strict=True)
            for row, (choice, position) in enumerate(owners):
                choice.record(position, step, row)
                choice.touched_at = now

    def _sweep(self, now: float) -> None:
        """Write choices that have ended or gone quiet; forget those that never come back."""
        for choice in list(self._open):
            quiet = now - choice.touched_at
            if choice.has_ended:
                self._write(choice)
                self._close(choice)
            elif quiet >= (IDLE_SECONDS if choice.is_scheduled else LINGER_SECONDS):
                self._write(choice)
                if quiet >= FORGET_SECONDS:
                    self._close(choice)

    def _write(self, choice: Choice) -> None:
        """Hand a choice to the spool unless nothing is new since it was last written."""
        length = len(choice.completion_ids())
        if length <= choice.written_length:
            return
        if choice.written_length:
            self._spool.account.start()  # a further row of the same choice, longer than the last
        choice.written_length = length
        row = choice.to_row(self._config, datetime.now(UTC).strftime("%Y-%m-%d"))
        self._spool.offer(row, row.num_bytes)

    def _close(self, choice: Choice) -> None:
        self._open.remove(choice)
        choice.is_closed = True
        if not choice.written_length:
            self._spool.account.drop("empty")
