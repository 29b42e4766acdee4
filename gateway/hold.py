"""Requests of routes that nobody answers while one engine takes another's place.

They wait for a bounded time and among a bounded number; a client that leaves leaves the queue.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Literal

from gateway.errors import ClientLeftError, NotReadyError
from gateway.health import PoolConfig

Outcome = Literal["let_in", "refused", "left"]
Leaving = set[Callable[[], None]]
OnHeld = Callable[[str, Outcome | None], None]


class Hold:
    """Queues by route; used from one event loop."""

    def __init__(self, on_held: OnHeld = lambda _route, _outcome: None) -> None:
        """Begin with nobody waiting.

        Args:
            on_held: Called with a route when a request begins to wait for it (without an outcome),
                and with what came of it when it has waited.
        """
        self._on_held = on_held
        self._turns: defaultdict[str, list[asyncio.Future[None]]] = defaultdict(list)

    def let_in(self, routes: Collection[str]) -> None:
        """Wake those that wait for some routes, the first come first."""
        for route in self._turns.keys() & routes:
            for turn in self._turns[route]:
                if not turn.done():
                    turn.set_result(None)

    async def wait(
        self,
        route: str,
        is_held: Callable[[], bool],
        limits: PoolConfig,
        leaving: Leaving,
    ) -> float:
        """Return when a route is not held; at once, where it is not.

        Args:
            route: Its name.
            is_held: Whether it still is.
            limits: How many may wait, and for how long.
            leaving: What is called when the client has left.

        Returns:
            How many seconds that took.

        Raises:
            NotReadyError: If too many wait already, or it takes too long.
            ClientLeftError: If the client has left.
        """
        if not is_held():
            return 0.0
        began = time.monotonic()
        if len(self._turns[route]) >= limits.queue:
            self._on_held(route, None)
            self._on_held(route, "refused")
            raise NotReadyError(
                f"the engine of {route!r} is being replaced and too many requests wait for it "
                "already; retry later"
            )
        self._on_held(route, None)
        outcome: Outcome = "left"
        try:
            async with asyncio.timeout(limits.queue_seconds):
                while is_held():
                    await self._turn(route, leaving)
            outcome = "let_in"
        except TimeoutError as error:
            outcome = "refused"
            raise NotReadyError(
                f"the engine of {route!r} is being replaced and the wait for it was in vain; "
                "retry later"
            ) from error
        finally:
            self._on_held(route, outcome)
        return time.monotonic() - began

    async def _turn(self, route: str, leaving: Leaving) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_left() -> None:
            if not turn.done():
                turn.set_exception(ClientLeftError("the client has left"))

        self._turns[route].append(turn)
        leaving.add(on_left)
        try:
            await turn
        finally:
            leaving.discard(on_left)
            self._turns[route].remove(turn)
