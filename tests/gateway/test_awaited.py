"""Whoever waits for an exchange's rows gets them, whichever came first."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from capture.rows import LogitRow, encode_logits
from capture.schema import LOGITS
from capture.spool import SegmentWriter
from capture.tail import SpoolTail
from gateway import awaited
from gateway.awaited import MAX_TOKENS, RECENT_SECONDS, AwaitedRows
from tests.support.log_rows import logit_row


class Spooled:
    """A writer, and somebody who waits for what it writes."""

    def __init__(self, folder: Path) -> None:
        self.writer = SegmentWriter(folder, "logits", LOGITS, "w")
        self.rows = AwaitedRows(SpoolTail(folder, "logits"))

    def write(self, *rows: LogitRow, now: float | None = None) -> None:
        self.writer.append(encode_logits(rows))
        self.rows.look(time.monotonic() if now is None else now)


@pytest.fixture
def spooled(tmp_path: Path) -> Spooled:
    return Spooled(tmp_path)


async def test_rows_may_come_before_they_are_expected_or_after(spooled: Spooled) -> None:
    spooled.write(logit_row("x"), logit_row("other"))
    await spooled.rows.expect("x")
    waiting = asyncio.create_task(spooled.rows.wait("x", 2))
    await asyncio.sleep(0)
    assert not waiting.done()
    spooled.write(logit_row("x", choice=1))

    found = await waiting
    rows = [row for batch in found if batch is not None for row in batch.to_pylist()]
    assert [(row["exchange_id"], row["choice"]) for row in rows] == [("x", 0), ("x", 1)]
    await spooled.rows.forget("x")
    assert await spooled.rows.wait("x", 1) == ()


async def test_a_row_that_came_long_before_is_gone(
    spooled: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awaited, "ROW_SECONDS", 0.05)
    spooled.write(logit_row("x"), now=0.0)
    spooled.rows.look(RECENT_SECONDS + 1)
    await spooled.rows.expect("x")

    following = asyncio.create_task(spooled.rows.follow())
    assert await spooled.rows.wait("x", 1) == ()
    following.cancel()


async def test_a_row_that_is_too_long_is_not_kept(spooled: Spooled) -> None:
    await spooled.rows.expect("x")
    spooled.write(replace(logit_row("x"), prompt_ids=np.ones(MAX_TOKENS, np.int32)))

    assert await spooled.rows.wait("x", 1) == [None]


async def test_what_is_held_is_bounded(spooled: Spooled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awaited, "ROW_SECONDS", 0.05)
    monkeypatch.setattr(awaited, "HELD_BYTES", 1)
    for name in ("x", "y", "z"):
        await spooled.rows.expect(name)
    spooled.write(logit_row("x"), logit_row("y"))
    following = asyncio.create_task(spooled.rows.follow())

    assert len(await spooled.rows.wait("x", 1)) == 1
    assert await spooled.rows.wait("y", 1) == ()
    await spooled.rows.forget("x")
    spooled.write(logit_row("z"))
    assert len(await spooled.rows.wait("z", 1)) == 1
    following.cancel()
