"""Requests under way per deployment, and waiting for the last of them."""

import asyncio
from collections import Counter, defaultdict


class UnderWay:
    """Counts; used from one event loop."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._ended: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def begin(self, deployment: str) -> None:
        """Count a request in."""
        self._counts[deployment] += 1

    def end(self, deployment: str) -> None:
        """Count a request out."""
        self._counts[deployment] -= 1
        if not self._counts[deployment]:
            self._ended[deployment].set()

    async def drain(self, deployment: str) -> None:
        """Return when nothing is under way; give the deployment no new requests meanwhile."""
        while self._counts[deployment]:
            self._ended[deployment].clear()
            await self._ended[deployment].wait()
        self._counts.pop(deployment, None)
        self._ended.pop(deployment, None)
