"""Who may use something that some share and others need for themselves; one event loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Any number side by side, or one alone. Whoever waits to be alone goes first."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._num_beside = 0
        self._num_waiting = 0
        self._is_alone = False

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """Go on together with others."""
        while self._is_alone or self._num_waiting:
            await self._changed.wait()
        self._num_beside += 1
        try:
            yield
        finally:
            self._num_beside -= 1
            self._tell()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Go on when everybody else has ended or waits."""
        self._num_waiting += 1
        try:
            while self._is_alone or self._num_beside:
                await self._changed.wait()
            self._is_alone = True
        finally:
            self._num_waiting -= 1
            self._tell()
        try:
            yield
        finally:
            self._is_alone = False
            self._tell()

    def _tell(self) -> None:
        """Let everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()
