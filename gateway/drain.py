"""Requests under way per deployment, and waiting for the last of them."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable

Drain = Callable[[str], Awaitable[None]]


class UnderWay:
    """Counts; used from one event loop.

    Attributes:
        drain_elsewhere: Waits for requests to a deployment that other processes have under way.
    """

    def __init__(self) -> None:
        self.drain_elsewhere: Drain = _nobody
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

    def num(self, deployment: str) -> int:
        """Requests under way here."""
        return self._counts[deployment]

    async def drain(self, deployment: str) -> None:
        """Return when nothing is under way; give the deployment no new requests meanwhile."""
        while self._counts[deployment]:
            self._ended[deployment].clear()
            await self._ended[deployment].wait()
        self._counts.pop(deployment, None)
        self._ended.pop(deployment, None)

    async def is_drained(self, deployment: str, seconds: float) -> bool:
        """Wait until nothing is under way in any process, for so long at most; whether that is."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(self.drain(deployment), self.drain_elsewhere(deployment))
        except TimeoutError:
            return False
        return True


async def _nobody(_: str) -> None:
    """No other process has anything under way."""
