"""Clients that keep a ledger of the answers they have received whole."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import httpx

PAUSE_SECONDS = 0.02  # after a request that failed


@dataclass
class Ledger:
    """Ids of exchanges received whole, by the promise of their route; and how many were not."""

    received: dict[str, set[str]] = field(default_factory=dict)
    failed: int = 0
    seconds: list[float] = field(default_factory=list)


@asynccontextmanager
async def traffic(url: str, routes: list[str], *, clients: int, seed: int) -> AsyncIterator[Ledger]:
    """Ask without a pause, streaming and not, until the context is left."""
    ledger = Ledger({route: set() for route in routes})
    async with httpx.AsyncClient(base_url=url, timeout=10.0) as client:
        tasks = [
            asyncio.create_task(_ask_on(client, routes, ledger, Random(seed + number)))
            for number in range(clients)
        ]
        try:
            yield ledger
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended


async def _ask_on(
    client: httpx.AsyncClient, routes: list[str], ledger: Ledger, random: Random
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        route, stream = random.choice(routes), random.random() < 0.5
        began = loop.time()
        exchange = await ask(client, route, stream=stream)
        if exchange is None:
            ledger.failed += 1
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            ledger.received[route].add(exchange)
            ledger.seconds.append(loop.time() - began)


async def ask(client: httpx.AsyncClient, route: str, *, stream: bool) -> str | None:
    """The exchange's id if its answer came whole."""
    body = {
        "model": route,
        "stream": stream,
        "messages": [{"role": "user", "content": "hi"}],
    }
    try:
        answer = await client.post("/v1/chat/completions", json=body)
    except httpx.TransportError:
        return None
    is_whole = answer.content.endswith(b"data: [DONE]\n\n" if stream else b"}")
    return answer.headers["x-retort-exchange-id"] if answer.is_success and is_whole else None
