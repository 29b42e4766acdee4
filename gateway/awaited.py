"""Rows that somebody waits for, as an incumbent's tap or a listener to its wire spools them."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from capture.tail import SpoolTail

LOOK_SECONDS = 0.25
ROW_SECONDS = 12.0  # a tap that cannot see an answer's end waits for 10 s
RECENT_SECONDS = 5.0  # that a row may come before anybody expects it
RECENT_BYTES = 32 * 1024 * 1024
MAX_TOKENS = 4096  # of a prompt and its answer; an engine says some 2 kB of each
HELD_BYTES = 64 * 1024 * 1024  # of rows until they are forgotten; what finds no room is not seen
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class AwaitedRows:
    """Rows of the ``logits`` table, of exchanges that were told. ``follow`` them.

    Attributes:
        tail: Of the spool they come to.
    """

    tail: SpoolTail
    _rows: dict[str, dict[int, pa.RecordBatch | None]] = field(default_factory=dict)
    _held_bytes: int = 0
    _recent: deque[tuple[float, list[str], pa.RecordBatch]] = field(default_factory=deque)
    _recent_bytes: int = 0
    _looked: asyncio.Event = field(default_factory=asyncio.Event)

    async def expect(self, exchange_id: str) -> None:
        """Keep an exchange's rows from now on."""
        self._rows[exchange_id] = {}
        for _, ids, batch in self._recent:
            self._take(ids, batch, (exchange_id,))

    async def forget(self, exchange_id: str) -> None:
        """Keep them no longer."""
        rows = self._rows.pop(exchange_id, {}).values()
        self._held_bytes -= sum(map(_size, rows))

    async def wait(self, exchange_id: str, num_choices: int) -> Sequence[pa.RecordBatch | None]:
        """Wait for a row per choice.

        Returns:
            Each as a batch of its own, None for one of more than ``MAX_TOKENS``; none at all if
            they do not come, or nobody has told that they were expected.
        """
        deadline = time.monotonic() + ROW_SECONDS
        while exchange_id in self._rows and time.monotonic() < deadline:
            rows = self._rows[exchange_id]
            if len(rows) >= num_choices:
                return [rows[choice] for choice in sorted(rows)]
            await self._looked.wait()
        return ()

    async def follow(self) -> None:
        """Look into the spool again and again."""
        while True:
            try:
                self.look(time.monotonic())
            except OSError as error:
                logger.warning("the spool cannot be read: %s", error)
            await asyncio.sleep(LOOK_SECONDS)

    def look(self, now: float) -> None:
        """Take what has come since the last time; ``now`` in monotonic seconds."""
        for batch in self.tail.new():
            ids = batch["exchange_id"].to_pylist()
            self._take(ids, batch, self._rows.keys())
            self._recent.append((now, ids, batch))
            self._recent_bytes += batch.nbytes
        while self._recent and (
            now - self._recent[0][0] > RECENT_SECONDS or self._recent_bytes > RECENT_BYTES
        ):
            self._recent_bytes -= self._recent.popleft()[2].nbytes
        self._looked.set()
        self._looked = asyncio.Event()

    def _take(self, ids: Sequence[str], batch: pa.RecordBatch, wanted: Container[str]) -> None:
        for line, exchange_id in enumerate(ids):
            if exchange_id in wanted and self._held_bytes < HELD_BYTES:
                one = batch.take([line])  # a copy, so that it keeps none of the others
                num_tokens = sum(len(one[name][0]) for name in ("prompt_ids", "completion_ids"))
                rows, choice = self._rows[exchange_id], one["choice"][0].as_py()
                before = rows.get(choice)  # a shorter one: the answer went on
                rows[choice] = one if num_tokens <= MAX_TOKENS else None
                self._held_bytes += _size(rows[choice]) - _size(before)


def _size(row: pa.RecordBatch | None) -> int:
    return 0 if row is None else int(row.nbytes)
