"""Whatever the spool's disk does, clients get their answers, and what was lost is counted."""

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from capture.account import Counts, read_counts
from capture.commit import Committer
from capture.config import CaptureConfig
from capture.log import Log, query
from capture.spool import read_segment
from capture.verify import verify
from capture.writer import SpoolLimits
from tests.gateway.test_relay import LIMITS, Stand, chat, stand
from tests.support.full_disk import failing_disk
from tests.support.killable import wait_for
from tests.support.real_disk import Ext4, ext4_disk, fill, small_disk

if TYPE_CHECKING:
    import httpx

NUM_ASKED = 30
NUM_TIMED = 200
PATIENCE_SECONDS = 3.0  # of clients; less than the wait for a disk, far more than an answer


async def ask(s: Stand, num: int = NUM_ASKED) -> list[str]:
    """Ids of exchanges answered whole, asked one after the other."""
    ids = []
    for number in range(num):
        body = chat("hi", stream=number % 2 == 0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await s.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        ids.append(answer.headers["x-retort-exchange-id"])
    return ids


def logged(folder: Path) -> set[str]:
    """Commit everything, check that it adds up, and give the ids in the log."""
    config = CaptureConfig(log=folder / "log", spool=folder / "spool")
    Committer(config).commit()
    found = verify(config)
    assert (found.problems, found.quarantined) == ([], 0)
    with Log(config.log).connect() as connection:
        return set(query(connection, "from exchanges")["exchange_id"].to_pylist())


def counts(folder: Path) -> Counts:
    (found,) = read_counts(folder / "spool").values()
    return found


def all_are_written(folder: Path) -> bool:
    """Whether what was asked is in the spool; its count may not be there at all yet."""
    return [each.written for each in read_counts(folder / "spool").values()] == [NUM_ASKED]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("promise", ["durable", "strict"])
async def test_a_failing_disk_fails_no_client_and_costs_exactly_the_rows_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, promise: str
) -> None:
    async with stand(tmp_path) as s:
        route = s.serving.config.routes["support"].model_copy(update={"promise": promise})
        s.serving.config.routes["support"] = route
        before = await ask(s)
        with failing_disk(monkeypatch, number):
            await ask(s)
        after = await ask(s)

    found = counts(tmp_path)
    assert (found.started, found.written) == (3 * NUM_ASKED, 2 * NUM_ASKED)
    assert found.dropped == {"store": NUM_ASKED}
    assert logged(tmp_path) == {*before, *after}


async def test_a_durable_route_does_not_notice_a_sync_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing, goes_on = stall(monkeypatch, "fdatasync")
    async with stand(tmp_path) as s:
        await ask(s, 1)
        assert await asyncio.to_thread(syncing.wait, 10)
        asked = await ask(s)
        metrics = (await s.client.get("/metrics")).text
        goes_on.set()

    assert "retort_capture_late_total{" not in metrics
    assert set(asked) <= logged(tmp_path)
    assert counts(tmp_path).written == NUM_ASKED + 1


@pytest.mark.parametrize(("promise", "call"), [("strict", "fdatasync"), ("durable", "writev")])
async def test_a_stalling_disk_holds_up_one_client_for_a_moment_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promise: str, call: str
) -> None:
    _, goes_on = stall(monkeypatch, call)
    async with stand(tmp_path, wait_seconds=0.5, write_seconds=0.5) as s:
        route = s.serving.config.routes["support"].model_copy(update={"promise": promise})
        s.serving.config.routes["support"] = route
        loop = asyncio.get_running_loop()
        began = loop.time()
        asked = await ask(s)
        took = loop.time() - began
        metrics = (await s.client.get("/metrics")).text
        goes_on.set()

    assert took < NUM_ASKED * 0.5
    assert f'retort_capture_late_total{{route="support"}} {NUM_ASKED}.0' in metrics
    assert logged(tmp_path) == set(asked)


async def test_a_client_waits_for_the_write_however_short_its_wait_for_the_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, goes_on = stall(monkeypatch, "writev")
    _, syncs = stall(monkeypatch, "fdatasync")
    async with stand(tmp_path, wait_seconds=0.01) as s:
        route = s.serving.config.routes["support"].model_copy(update={"promise": "strict"})
        s.serving.config.routes["support"] = route
        asked = asyncio.create_task(ask(s))
        await asyncio.sleep(0.2)
        assert not asked.done()
        goes_on.set()
        ids = await asked
        (segment,) = s.spool_dir.glob("*.open")
        rows = [row for batch in read_segment(segment).batches for row in batch.to_pylist()]
        syncs.set()

    assert [row["exchange_id"] for row in rows] == ids


async def test_requests_are_refused_while_the_buffer_is_full_if_the_log_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = SpoolLimits(sync_seconds=LIMITS.sync_seconds, buffer_bytes=8192, holds_rows=True)
    async with stand(tmp_path, limits=limits, write_seconds=0.05, overflow="shed_traffic") as s:
        answered: list[httpx.Response] = []
        refused: list[httpx.Response] = []
        with failing_disk(monkeypatch, errno.ENOSPC):
            for _ in range(NUM_ASKED):
                answer = await s.client.post("/v1/chat/completions", json=chat("hi"))
                (answered if answer.is_success else refused).append(answer)
        await until_room(s)
        answered.append(await s.client.post("/v1/chat/completions", json=chat("hi")))

    assert refused
    assert {answer.status_code for answer in refused} == {503}
    assert refused[0].json()["error"]["code"] == "capture_full"
    assert counts(tmp_path).dropped == {}
    assert logged(tmp_path) == {answer.headers["x-retort-exchange-id"] for answer in answered}


async def until_room(s: Stand) -> None:
    async with asyncio.timeout(10):
        while (await s.client.get("/v1/models")).is_success and s.serving.spool.is_filling:
            pass


def stall(monkeypatch: pytest.MonkeyPatch, call: str) -> tuple[threading.Event, threading.Event]:
    """Let a call on the disk take until the second event is set; the first says it was begun."""
    real, begun, goes_on = getattr(os, call), threading.Event(), threading.Event()

    def wait(*values: object) -> object:
        begun.set()
        assert goes_on.wait(20)
        return real(*values)

    monkeypatch.setattr(os, call, wait)
    return begun, goes_on


async def test_a_disk_that_fills_up_and_is_cleared_costs_exactly_the_rows_counted(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "small", "256k") as disk:
        ballast = disk / "ballast"
        async with stand(disk) as s:
            before = await ask(s)
            await asyncio.to_thread(fill, ballast)
            await ask(s)
            await asyncio.to_thread(ballast.unlink)
            await ask(s)
        found = counts(disk)
        shutil.copytree(disk / "spool", tmp_path / "spool")

    in_log = logged(tmp_path)
    assert set(before) <= in_log
    assert found.dropped["store"] > 0
    assert len(in_log) == found.written == 3 * NUM_ASKED - found.dropped["store"]


@pytest.mark.parametrize("fault", [Ext4.turn_read_only, Ext4.fail])
async def test_a_disk_that_turns_read_only_or_fails_costs_the_rows_counted_until_it_is_back(
    tmp_path: Path, fault: Callable[[Ext4], None]
) -> None:
    with ext4_disk(tmp_path / "disk") as disk:
        async with stand(disk.folder) as s:
            before = await ask(s)
            # Rows that are not synced yet may be lost.
            await asyncio.to_thread(wait_for, lambda: all_are_written(disk.folder))
            await asyncio.to_thread(fault, disk)
            during = await ask(s)
            await asyncio.to_thread(disk.bring_back)
            after = await ask(s)
        found = counts(disk.folder)
        shutil.copytree(disk.folder / "spool", tmp_path / "spool")

    assert (found.started, found.written) == (3 * NUM_ASKED, 2 * NUM_ASKED)
    assert found.dropped == {"store": NUM_ASKED}
    assert logged(tmp_path) == {*before, *after}
    assert len(set(during)) == NUM_ASKED


async def test_a_spool_ends_on_a_disk_that_has_failed_for_good(tmp_path: Path) -> None:
    with ext4_disk(tmp_path / "disk") as disk:
        async with stand(disk.folder) as s:
            await ask(s, 1)
            await asyncio.to_thread(disk.fail)
            await ask(s)
            spool = s.serving.spool
    assert spool.account.num_dropped == NUM_ASKED


async def test_syncs_of_five_seconds_do_not_show_in_the_slowest_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, syncing, ends = os.fdatasync, threading.Event(), threading.Event()

    def sync(file: int) -> None:
        syncing.set()
        ends.wait(5.0)
        real(file)

    async with stand(tmp_path) as s:
        before = await slowest(s)
        monkeypatch.setattr(os, "fdatasync", sync)
        await ask(s, 1)
        assert await asyncio.to_thread(syncing.wait, 10)
        during = await slowest(s)
        ends.set()

    assert during < before + 0.25
    assert counts(tmp_path).written == 2 * NUM_TIMED + 1
    assert counts(tmp_path).dropped == {}


async def slowest(s: Stand) -> float:
    """The 99th percentile of answers' times, in seconds."""
    loop, times = asyncio.get_running_loop(), []
    for _ in range(NUM_TIMED):
        began = loop.time()
        await ask(s, 1)
        times.append(loop.time() - began)
    return sorted(times)[NUM_TIMED * 99 // 100 - 1]
