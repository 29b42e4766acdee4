"""A gateway relieved by another, again and again, under load: nobody is refused, no row is lost."""

import asyncio
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from capture.commit import Committer
from capture.config import load
from capture.engine import free_port
from capture.log import Log, query
from capture.verify import verify
from gateway import handover
from gateway.errors import HandoverError
from gateway.handover import Predecessor, listening_at, waiting
from gateway.listener import bound
from tests.gateway.test_relay import chat
from tests.support.fake_engine import FakeEngine
from tests.support.killable import wait_for
from tests.support.retort import RETORT, address, is_ready
from tests.support.serving import served

NUM_TAKEOVERS = 3
NUM_CLIENTS = 8


def configure(folder: Path, url: str) -> Path:
    path = folder / "retort.toml"
    path.write_text(
        f"""\
[gateway]
listen = "127.0.0.1:{free_port()}"
admin_listen = "127.0.0.1:{free_port()}"
[gateway.routes.support]
url = "{url}"
[capture]
segment_seconds = 0.5
commit_seconds = 0.5
"""
    )
    return path


@dataclass
class Clients:
    """They ask without a pause, on connections that they keep."""

    url: str
    statuses: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    stopped: bool = False

    async def ask(self, number: int) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as client:
            while not self.stopped:
                body = chat("hi", stream=number % 2 == 0)
                try:
                    answer = await client.post("/v1/chat/completions", json=body)
                except httpx.HTTPError as error:
                    self.failures.append(error)
                    continue
                self.statuses.append(answer.status_code)
                self.ids.append(answer.headers["x-retort-exchange-id"])
                await asyncio.sleep(0.01)


@contextmanager
def processes(config: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Gateways of a test; those that still run are ended."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(40) for process in started]
    assert set(codes) == {0}, (config.parent / "serve.log").read_text()


def serve(config: Path, *flags: str) -> "subprocess.Popen[bytes]":
    with (config.parent / "serve.log").open("ab") as log:
        return subprocess.Popen([*RETORT, "serve", "-c", str(config), *flags], stderr=log)


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_nobody_is_refused_while_gateways_relieve_one_another(tmp_path: Path) -> None:
    async with served(FakeEngine().app) as engine_url:
        config = configure(tmp_path, engine_url)
        with processes(config) as gateways:
            gateways.append(serve(config))
            await asyncio.to_thread(wait_for, lambda: is_ready(config), 60)
            clients = Clients(address(config))
            asking = [asyncio.create_task(clients.ask(n)) for n in range(NUM_CLIENTS)]
            for _ in range(NUM_TAKEOVERS):
                gateways.append(serve(config, "--take-over"))
                await asyncio.to_thread(gateways[-2].wait, 60)
                seen = len(clients.statuses)
                async with asyncio.timeout(30):
                    while len(clients.statuses) < seen + 20:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            clients.stopped = True
            await asyncio.gather(*asking)

    assert clients.failures == []
    assert set(clients.statuses) == {200}
    settings = load(config)
    Committer(settings).commit()
    with Log(settings.log).connect() as connection:
        rows = query(connection, "select exchange_id from exchanges").to_pylist()
    assert sorted(row["exchange_id"] for row in rows) == sorted(clients.ids)
    assert verify(settings).problems == []


async def test_a_successor_that_cannot_start_leaves_the_old_one_serving(tmp_path: Path) -> None:
    async with served(FakeEngine().app) as engine_url:
        config = configure(tmp_path, engine_url)
        with processes(config) as gateways:
            gateways.append(serve(config))
            await asyncio.to_thread(wait_for, lambda: is_ready(config), 60)
            text = config.read_text()
            config.write_text(text + "no_such_key = 1\n")
            failed = await asyncio.to_thread(serve(config, "--take-over").wait, 60)
            config.write_text(text)

            assert failed == 2
            assert is_ready(config)


def test_without_a_predecessor_there_is_nothing_to_take_over(tmp_path: Path) -> None:
    done = subprocess.run(
        [*RETORT, "serve", "-c", str(configure(tmp_path, "http://127.0.0.1:9")), "--take-over"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 1
    assert "no gateway to take over from" in done.stderr


async def test_sockets_are_handed_over_to_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "SECONDS", 0.2)
    taken = asyncio.Event()
    door = bound(f"127.0.0.1:{free_port()}")
    host, port = door.getsockname()
    async with waiting(tmp_path, [door], taken.set):
        predecessor = await asyncio.to_thread(Predecessor.find, tmp_path)
        await asyncio.sleep(0.5)  # engines take their time to start
        (handed,) = await asyncio.to_thread(predecessor.hand_over)
        await asyncio.wait_for(taken.wait(), 5)
        assert predecessor._connection is not None
        predecessor._connection.close()
    door.close()
    with handed, socket.create_connection((host, port)) as client:
        server, _ = handed.accept()
        with server:
            client.sendall(b"still here")
            assert server.recv(10) == b"still here"
        assert listening_at(f"{host}:{port}", [handed]) is handed
        assert listening_at("127.0.0.1:1", [handed]) is None


async def test_who_says_something_else_is_given_nothing(tmp_path: Path) -> None:
    asked = asyncio.Event()
    async with waiting(tmp_path, [], asked.set):
        with Predecessor(tmp_path)._knock() as connection:
            connection.sendall(b"give me!!!")
            assert await asyncio.to_thread(connection.recv, 1) == b""

        assert not asked.is_set()
        assert (tmp_path / "gateway.sock").stat().st_mode & 0o077 == 0
    with pytest.raises(HandoverError):
        Predecessor.find(tmp_path)
