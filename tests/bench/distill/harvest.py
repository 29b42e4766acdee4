"""A real log: a teacher in vLLM with the tap, asked through the gateway, committed."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from rich.progress import Progress

from capture.commit import Committer
from capture.config import load
from capture.engine import free_port
from capture.host import SMALL_ENGINE_ARGS, SMALL_ENGINE_ENV
from capture.log import Log
from gateway.demo.prompts import Prompt
from gateway.demo.traffic import Client, Outcome, send
from tests.support.retort import address, serving
from trainer.dataset import COLUMNS

ROUTE = "teacher"


@dataclass(frozen=True, slots=True)
class Kept:
    """What the tap keeps of each distribution.

    Attributes:
        k: Entries, always as many.
        draws: Ids drawn from outside them.
    """

    k: int
    draws: int


def harvest(
    teacher: Path, prompts: Sequence[Prompt], kept: Kept, home: Path, bar: Progress
) -> pa.Table:
    """Ask every prompt once, greedily, and return the log's rows."""
    home.mkdir()
    config = write_config(teacher, kept, home)
    task = bar.add_task(f"capturing, k = {kept.k}", total=len(prompts))
    outcomes: list[Outcome] = []

    def record(outcome: Outcome) -> None:
        outcomes.append(outcome)
        bar.advance(task)

    with serving(config):
        client = Client(address(config), ROUTE)
        asking = send(client, iter(prompts), stop=lambda _: False, on_outcome=record)
        asyncio.run(asking)
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    if failures:
        raise RuntimeError(f"{len(failures)} requests failed: {failures[0]}")
    settings = load(config)
    Committer(settings).commit()
    log = Log(settings.log)
    return log.read(log.snapshot("role = 'incumbent'"), COLUMNS)


def write_config(teacher: Path, kept: Kept, home: Path) -> Path:
    """Write a gateway with one route."""
    env = "\n".join(f"{key} = {json.dumps(value)}" for key, value in SMALL_ENGINE_ENV.items())
    args = [*SMALL_ENGINE_ARGS, "--max-model-len", "512", "--max-num-seqs", "32"]
    path = home / "retort.toml"
    path.write_text(
        f"""\
[gateway]
listen = "127.0.0.1:{free_port()}"
admin_listen = "127.0.0.1:{free_port()}"
[gateway.routes.{ROUTE}]
model = {json.dumps(str(teacher.resolve()))}
[gateway.routes.{ROUTE}.engine]
args = {json.dumps(args)}
[gateway.routes.{ROUTE}.engine.env]
{env}
[capture]
k_min = {kept.k}
k_max = {kept.k}
mass = 1.0
tail_draws = {kept.draws}
""",
        encoding="utf-8",
    )
    return path
