"""SIGKILL at random points under load: the client's own ledger against the log."""

import asyncio
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from capture.commit import Committer
from capture.config import load
from capture.engine import free_port
from capture.log import Log, query
from capture.store import LogFolder
from capture.verify import verify
from tests.support.killable import Committers, Killable, Victim, wait_for
from tests.support.retort import RETORT, address
from tests.support.traffic import Ledger, traffic

ROUTES = ["durable", "strict", "best_effort"]


def configure(folder: Path, engine: str) -> Path:
    routes = "\n".join(
        f'[gateway.routes.{name}]\nurl = "http://{engine}"\npromise = "{name}"' for name in ROUTES
    )
    path = folder / "retort.toml"
    path.write_text(
        f"""\
[gateway]
listen = "127.0.0.1:{free_port()}"
admin_listen = "127.0.0.1:{free_port()}"
{routes}
[capture]
segment_seconds = 0.1
commit_seconds = 0.05
""",
        encoding="utf-8",
    )
    return path


async def kill_under_load(folder: Path, config: Path, *, engine: str, kills: int) -> Ledger:
    """Kill one of the three programs again and again; then end them as they should be."""
    random = Random(kills)
    listen = address(config)
    command = [sys.executable, "-m", "tests.support.engine_process", engine, str(folder / "spool")]
    engine_process = Killable(command, f"http://{engine}/", folder / "engine.log")
    serve = [*RETORT, "serve", "-c", str(config)]
    gateway = Killable(serve, f"{listen}/readyz", folder / "gateway.log")
    victims: list[Victim] = [engine_process, gateway, committers := Committers(config)]
    async with traffic(listen, ROUTES, clients=4, seed=kills) as ledger:
        for _ in range(kills):
            victim = random.choice(victims)
            await asyncio.sleep(random.random() * 0.5)
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(victim.start)
        await asyncio.sleep(0.5)
    engine_process.end()
    gateway.end()
    wait_for(lambda: not committers.pids())
    return ledger


def ids(log: LogFolder, table: str) -> Counter[str]:
    with Log(log).connect() as connection:
        return Counter(query(connection, f"from {table}")["exchange_id"].to_pylist())


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_no_answer_that_a_client_has_is_missing_however_we_die(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    engine = f"127.0.0.1:{free_port()}"
    path = configure(tmp_path, engine)
    ledger = await kill_under_load(
        tmp_path, path, engine=engine, kills=pytestconfig.getoption("--kills")
    )
    config = load(path)
    Committer(config).commit()

    exchanges, choices = ids(config.log, "exchanges"), ids(config.log, "logits")
    kept = ledger.received["durable"] | ledger.received["strict"]
    assert len(kept) > pytestconfig.getoption("--kills")
    assert kept - set(exchanges) == set()
    assert kept - set(choices) == set()
    assert max(exchanges.values()) == max(choices.values()) == 1
    found = verify(config)
    assert (found.problems, found.quarantined, found.orphan_files) == ([], 0, 0)
    for balance in found.tables.values():
        assert balance.in_flight == 0
        assert balance.started == balance.committed + balance.dropped.total()
