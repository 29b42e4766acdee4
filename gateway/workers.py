"""The further processes of a gateway, as the first one sees them: started, told, asked, ended."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from gateway.channel import Channel, Handler
from gateway.collectors import add_up, exposition
from gateway.errors import WorkerLostError
from gateway.exchange import Exchange
from gateway.gate import Gate
from gateway.keys import ApiKey
from gateway.limits import Reservation
from gateway.reload import Settings
from gateway.replica import describe
from gateway.serving import Serving
from gateway.spawned import spawned
from gateway.worker import Plan, work

START_AGAIN_SECONDS = 1.0
METRICS_SECONDS = 1.0
logger = logging.getLogger(__name__)


class Workers:
    """Any number of them, none included. Each is started again whenever it ends.

    Attributes:
        on_ended: Called with exchanges of theirs that a rollout could learn from.
    """

    def __init__(self, number: int, serving: Serving, registry: CollectorRegistry) -> None:
        """Begin with none running.

        Args:
            number: How many there are to be.
            serving: Its table is theirs, its gate keeps their quotas.
            registry: The metrics that theirs are added to.
        """
        self.on_ended: Callable[[Exchange], None] = lambda _: None
        self._number = number
        self._serving = serving
        self._registry = registry
        self._running: set[_Running] = set()
        self._lost: list[Metric] = []
        self._is_ending = False
        self._has_reloaded = False
        self._telling: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def running(
        self, path: Path, settings: Settings, pepper: str | None, door: socket.socket
    ) -> AsyncIterator[None]:
        """Keep them running for as long as the context lasts; then they end as we do."""
        given = (path, settings, pepper, door)
        keeping = [asyncio.create_task(self._keep(given)) for _ in range(self._number)]
        try:
            yield
        finally:
            if not self._is_ending:
                self.end()
            await asyncio.gather(*keeping)
            for task in list(self._telling):
                task.cancel()
            await asyncio.gather(*self._telling, return_exceptions=True)

    def publish(self) -> None:
        """Let them know the route table, and which engines have ended."""
        described = describe(self._serving.table)
        for worker in self._running:
            self._tell(worker.channel.ask("table", described))

    async def drain(self, deployment: str) -> None:
        """Return when none has a request under way at a deployment that the table has no more."""
        await asyncio.gather(*(self._drain(worker, deployment) for worker in list(self._running)))

    async def _drain(self, worker: "_Running", deployment: str) -> None:
        with contextlib.suppress(WorkerLostError):
            await worker.channel.ask("table", describe(self._serving.table))
            await worker.channel.ask("drain", deployment)

    async def exposition(self, _: object = None) -> bytes:
        """Metrics of all processes together, in Prometheus's text format."""
        await asyncio.gather(*(self._look(worker) for worker in list(self._running)))
        theirs = [family for worker in self._running for family in worker.families]
        return exposition(self._registry, [*self._lost, *theirs])

    async def _look(self, worker: "_Running") -> None:
        """Read a worker's metrics; one that does not answer is shown as it was last."""
        with contextlib.suppress(WorkerLostError, TimeoutError):
            async with asyncio.timeout(METRICS_SECONDS):
                worker.families = await worker.channel.ask("metrics")

    def reload(self) -> None:
        """Let them read the configuration again, and those that are started later."""
        self._has_reloaded = True
        for worker in self._running:
            worker.channel.tell("reload")

    def end(self) -> None:
        """Ask them to end: once lets their requests finish, twice cuts them off."""
        self._is_ending = True
        for worker in self._running:
            worker.channel.tell("end")

    hang_up = end

    def _tell(self, asking: Coroutine[Any, Any, Any]) -> None:
        async def ask() -> None:
            with contextlib.suppress(WorkerLostError):
                await asking

        task = asyncio.create_task(ask())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _keep(self, given: tuple[Path, Settings, str | None, socket.socket]) -> None:
        while not self._is_ending:
            await self._run(given)
            if not self._is_ending:
                logger.warning("a worker has ended; it is started again")
                await asyncio.sleep(START_AGAIN_SECONDS)

    async def _run(self, given: tuple[Path, Settings, str | None, socket.socket]) -> None:
        """Run one from its start to its end."""
        handlers: dict[str, Handler] = {}
        async with spawned(work, partial(Plan, *given), handlers) as channel:
            worker = _Running(channel, self._serving.gate)
            handlers |= {
                "reserve": worker.reserve,
                "settle": worker.settle,
                "ended": self._learn,
                "exposition": self.exposition,
            }
            self._running.add(worker)
            if self._has_reloaded:
                channel.tell("reload")  # before the table, from which on it takes connections
            self._tell(channel.ask("table", describe(self._serving.table)))
            if self._is_ending:
                channel.tell("end")
            try:
                await channel.run()
            finally:
                self._running.discard(worker)
                self._lost = add_up([*self._lost, *worker.let_go()])

    async def _learn(self, carried: tuple[str, Exchange]) -> None:
        """An exchange comes with its deployment's name: the deployment is ours."""
        name, exchange = carried
        for deployment in self._serving.table.deployments:
            if deployment.name == name:
                self.on_ended(replace(exchange, deployment=deployment))


@dataclass(eq=False, slots=True)
class _Running:
    """One worker, and what it holds of its keys' quotas.

    Attributes:
        families: Its metrics as they were last read.
    """

    channel: Channel
    gate: Gate
    families: list[Metric] = field(default_factory=list)
    reservations: dict[int, Reservation] = field(default_factory=dict)

    async def reserve(self, carried: tuple[int, ApiKey, int]) -> None:
        """Take what a request of its may need.

        Raises:
            RateLimitError: If a minute's quota is used up.
            BudgetError: If a budget is.
        """
        number, key, tokens = carried
        self.reservations[number] = self.gate.limiter.reserve(key, tokens, time.monotonic())

    async def settle(self, carried: tuple[int, str, int, bool]) -> None:
        """Replace that by what it took."""
        number, key_id, tokens, was_asked = carried
        held = self.reservations.pop(number, None) or Reservation((), 0, key_id)
        self.gate.settle_tokens(held, tokens, was_asked=was_asked)

    def let_go(self) -> list[Metric]:
        """Give back what it held when it ended; returns what it had counted until then."""
        for held in self.reservations.values():
            self.gate.settle_tokens(held, 0, was_asked=False)
        self.reservations.clear()
        return [family for family in self.families if family.type != "gauge"]
