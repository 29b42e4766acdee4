"""What clients feel of swaps: ``make bench-swap`` writes ``bench/swap.json`` and prints a table.

A real gateway process under 200 live streams; the engines behind it are processes that speak
vLLM's protocol. One bundle in five is bad, in six ways in turn. Every stream must be whole and
come from the one deployment that its headers, its events and its row in the log name.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from capture.commit import Committer
from capture.config import load
from capture.log import Log, query
from tests.bench.swap.bundles import BAD, GOOD, KINDS, bundle, model
from tests.bench.swap.clients import Ledger, Streamed, clients
from tests.support.gateway_process import Gateway, configure, started

CALM_SECONDS = 30.0  # without swaps, before and after
WARMING_SECONDS = 8.0
LOOK_SECONDS = 0.2
STAGE_SECONDS = 120.0
BAD_EVERY = 5
CANARY_SHARE = 0.25
ROUTE = f"""
capture = "text"
[gateway.routes.support.rollout]
steps = [{CANARY_SHARE}]
mirror_concurrency = 200
[gateway.routes.support.guards]
error_rate_max = 0.05
min_pairs = 900
"""
console = Console(stderr=True, width=160)


@dataclass(frozen=True, slots=True)
class Swap:
    """One rollout.

    Attributes:
        kind: What its bundle is.
        ended: ``live``, ``rolled_back``, ``refused`` (it never began) or ``undecided``.
        reason: Why, in the gateway's words.
        candidate: Its deployment, empty if refused.
        began: Monotonic seconds.
        until: The same of its end.
    """

    kind: str
    ended: str
    reason: str
    candidate: str
    began: float
    until: float

    @property
    def is_right(self) -> bool:
        """Whether it went live if it is good, and else went back for what is wrong with it."""
        reasons = KINDS[self.kind].reasons
        if not reasons:
            return self.ended == "live"
        return self.went_back and any(reason in self.reason for reason in reasons)

    @property
    def went_back(self) -> bool:
        """Whether clients were left with, or given back to, the incumbent."""
        return self.ended in {"rolled_back", "refused"}


async def swap(admin: httpx.AsyncClient, folder: Path, kind: str) -> Swap:
    """Roll a bundle out and wait for its end."""
    began = time.monotonic()
    body = {"route": "support", "bundle": str(folder)}
    answer = await admin.post("/admin/rollouts", json=body)
    if not answer.is_success:
        message = answer.json()["error"]["message"]
        return Swap(kind, "refused", message, "", began, time.monotonic())
    rollout: dict[str, Any] = answer.json()
    where = f"/admin/rollouts/{rollout['id']}"
    while rollout["state"] in {"shadow", "canary"} and time.monotonic() < began + STAGE_SECONDS:
        await asyncio.sleep(LOOK_SECONDS)
        rollout = (await admin.get(where)).json()
    moves = (await admin.get(f"{where}/history")).json()["data"]
    ended, until = rollout["state"], time.monotonic()
    if ended in {"shadow", "canary"}:
        await admin.post(f"{where}/rollback", json={"reason": "undecided"})
        return Swap(kind, "undecided", "", rollout["candidate"], began, until)
    return Swap(kind, ended, moves[-1]["note"], rollout["candidate"], began, until)


def reload(gateway: Gateway, number: int) -> None:
    """Change the configuration and let the gateway read it."""
    text = gateway.config.read_text()
    old = next(line for line in text.splitlines() if line.startswith("bounds.max_stop"))
    gateway.config.write_text(text.replace(old, f"bounds.max_stop = {32 + number}"))
    gateway.process.send_signal(signal.SIGHUP)


async def swaps(gateway: Gateway, home: Path, number: int, reloads: int) -> list[Swap]:
    """Try one bundle after the other, every fifth a bad one, and reload in between."""
    done: list[Swap] = []
    num_bad = num_reloads = 0
    async with gateway.operator() as admin:
        admin.timeout = httpx.Timeout(STAGE_SECONDS)
        for count in range(1, number + 1):
            kind = GOOD
            if count % BAD_EVERY == 0:
                kind, num_bad = BAD[num_bad % len(BAD)], num_bad + 1
            folder = bundle(home, f"b{count}", KINDS[kind])
            while num_reloads < reloads * count // number:
                num_reloads += 1
                reload(gateway, num_reloads)
            done.append(await swap(admin, folder, kind))
            last = done[-1]
            words = last.reason.splitlines()[0] if last.reason else ""
            seconds = last.until - last.began
            console.print(f"{count:3} {kind:23} {last.ended:12} {seconds:5.1f} s  {words[:90]}")
    return done


def p99(streams: list[Streamed], name: str) -> float:
    """Of one of a stream's times, in seconds."""
    return float(np.percentile([getattr(stream, name) for stream in streams], 99))


def exposed(done: Swap, ledger: Ledger) -> float:
    """Share of the answers during a rollout that came from its candidate."""
    during = [s for s in ledger.streams if done.began <= s.ended_at <= done.until + 5]
    return sum(s.deployment == done.candidate for s in during) / max(len(during), 1)


def wrong_rows(config: Path, ledger: Ledger) -> int:
    """Streams without exactly one row in the log that names their deployment."""
    settings = load(config)
    Committer(settings).commit()
    with Log(settings.log).connect() as connection:
        sql = "select exchange_id, deployment from exchanges where role <> 'shadow'"
        rows = query(connection, sql).to_pylist()
    named: dict[str, list[str]] = {}
    for row in rows:
        named.setdefault(row["exchange_id"], []).append(row["deployment"])
    return sum(named.get(s.exchange_id) != [s.deployment] for s in ledger.streams)


def summary(ledger: Ledger, done: list[Swap], calm: list[Streamed], num_wrong: int) -> Any:
    """The figures of ``bench/swap.json``."""
    bad = [one for one in done if one.kind != GOOD]
    began, until = done[0].began, done[-1].until
    busy = [stream for stream in ledger.streams if began <= stream.ended_at <= until]
    return {
        "streams": len(ledger.streams),
        "swaps": len(done),
        "live": sum(one.ended == "live" for one in done),
        "failed": len(ledger.failed),
        "mixed": len(ledger.mixed),
        "wrong_rows": num_wrong,
        "bad_bundles": len(bad),
        "rolled_back": sum(one.went_back for one in bad),
        "wrong_reason": sum(not one.is_right for one in bad),
        "good_lost": sum(not one.is_right for one in done) - sum(not one.is_right for one in bad),
        "exposed_fraction_max": max((exposed(one, ledger) for one in bad), default=0.0),
        "canary_share": CANARY_SHARE,
        "p99_seconds": p99(busy, "seconds"),
        "p99_ratio": p99(busy, "seconds") / p99(calm, "seconds"),
        "first_event_p99_seconds": p99(busy, "first_seconds"),
        "first_event_p99_ratio": p99(busy, "first_seconds") / p99(calm, "first_seconds"),
        "seconds": until - began,
    }


async def measure(gateway: Gateway, home: Path, asked: argparse.Namespace) -> tuple[Any, ...]:
    """Streams without swaps, with swaps, and without again."""
    async with clients(gateway.url, asked.streams) as ledger:
        await asyncio.sleep(WARMING_SECONDS)
        begin = time.monotonic()
        await asyncio.sleep(CALM_SECONDS)
        done = await swaps(gateway, home, asked.swaps, asked.reloads)
        await asyncio.sleep(WARMING_SECONDS)
        again = time.monotonic()
        await asyncio.sleep(CALM_SECONDS)
    windows = ((begin, begin + CALM_SECONDS), (again, again + CALM_SECONDS))
    calm = [s for s in ledger.streams if any(a <= s.ended_at <= b for a, b in windows)]
    return ledger, done, calm


def main() -> int:
    """Measure, write and print; fails if a stream or a verdict was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200, help="Open at all times.")
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--reloads", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("bench/swap.json"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retort-swap-") as name:
        home = Path(name)
        config = configure(home, gateway="bounds.max_stop = 64", route=ROUTE)
        model(home / "model", "support", KINDS[GOOD])
        with started(config) as gateway:
            gateway.wait_ready()
            ledger, done, calm = uvloop.run(measure(gateway, home, asked))
        figures = summary(ledger, done, calm, wrong_rows(config, ledger))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(figures, indent=1) + "\n")
    table = Table("figure", "value")
    for key, value in figures.items():
        table.add_row(key, f"{value:,.3f}" if isinstance(value, float) else f"{value:,}")
    Console(file=sys.stdout, width=100).print(table)
    for problem in [*ledger.failed[:5], *ledger.mixed[:5]]:
        console.print(problem)
    names = ("failed", "mixed", "wrong_rows", "wrong_reason", "good_lost")
    return int(any(figures[name] for name in names))


if __name__ == "__main__":
    sys.exit(main())
