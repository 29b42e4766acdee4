"""Clients with a stream each at all times, and a ledger of what they were given."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import aiohttp
import orjson

RARE_SHARE = 0.05
RARE = "rare " * 150  # longer, so it is a slice of its own
PAUSE_SECONDS = 0.2  # after a request that failed


@dataclass(frozen=True, slots=True)
class Streamed:
    """One whole stream.

    Attributes:
        exchange_id: As its headers say.
        deployment: As its headers say.
        first_seconds: To the first byte of its body.
        seconds: To its last byte.
        ended_at: Monotonic seconds.
    """

    exchange_id: str
    deployment: str
    first_seconds: float
    seconds: float
    ended_at: float


@dataclass(slots=True)
class Ledger:
    """What the clients were given.

    Attributes:
        failed: What was no whole stream, in words.
        mixed: Streams whose events do not all come from the deployment that they name.
    """

    streams: list[Streamed] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)


@asynccontextmanager
async def clients(url: str, number: int) -> AsyncIterator[Ledger]:
    """Keep so many streams open; those under way when the context ends are finished."""
    ledger, stopping = Ledger(), asyncio.Event()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector) as session:
        asking = [
            asyncio.create_task(_ask_on(session, ledger, stopping, Random(seed)))
            for seed in range(number)
        ]
        try:
            yield ledger
        finally:
            stopping.set()
            await asyncio.gather(*asking)


async def _ask_on(
    session: aiohttp.ClientSession, ledger: Ledger, stopping: asyncio.Event, random: Random
) -> None:
    await asyncio.sleep(2 * random.random())  # not all at once
    while not stopping.is_set():
        words = RARE if random.random() < RARE_SHARE else "common"
        content = f"{words} {random.getrandbits(64)}"
        body = {
            "model": "support",
            "stream": True,
            "temperature": 0,
            "messages": [{"role": "user", "content": content}],
        }
        try:
            await _ask(session, ledger, body)
        except aiohttp.ClientError as error:
            ledger.failed.append(repr(error))
            await asyncio.sleep(PAUSE_SECONDS)


async def _ask(session: aiohttp.ClientSession, ledger: Ledger, body: dict[str, object]) -> None:
    began = time.monotonic()
    async with session.post("/v1/chat/completions", json=body) as answer:
        first = await answer.content.readany()
        first_at = time.monotonic()
        whole = first + await answer.content.read()
    now = time.monotonic()
    if answer.status != 200 or not whole.endswith(b"data: [DONE]\n\n"):
        ledger.failed.append(f"{answer.status} {whole[-200:]!r}")
        await asyncio.sleep(PAUSE_SECONDS)
        return
    deployment = answer.headers["x-retort-deployment"]
    events = [line[6:] for line in whole.split(b"\n\n") if line.startswith(b"data: {")]
    speakers = {orjson.loads(event)["id"] for event in events}
    if speakers != {deployment.rpartition("-")[0]}:
        ledger.mixed.append(f"{deployment}: {sorted(speakers)}")
    exchange = answer.headers["x-retort-exchange-id"]
    ledger.streams.append(Streamed(exchange, deployment, first_at - began, now - began, now))
