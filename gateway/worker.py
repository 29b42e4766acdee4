"""One more process of a gateway: takes a share of the connections and relays like the first.

What must be one for all of them the first keeps: engines, rollouts, quotas, the metrics' sums. It
says which deployment answers what; it is told of exchanges that a rollout learns from.
"""

import asyncio
import dataclasses
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import uvloop

from gateway.app import create_app
from gateway.channel import Channel, Handler
from gateway.collectors import worker_families
from gateway.drain import UnderWay
from gateway.exchange import Exchange, Request
from gateway.gate import Gate, needed
from gateway.holdings import opened_serving
from gateway.limits import NO_QUOTA, Limiter, Reservation
from gateway.listener import Listener, for_apps
from gateway.metrics import Metrics
from gateway.observers import Observers, in_turn, opened_observers
from gateway.reload import Reloader, Settings
from gateway.replica import Described, Replica
from gateway.serving import Serving

MAX_BACKLOG_BYTES = 64 * 1024 * 1024  # of exchanges that a rollout could learn from


@dataclass(frozen=True, slots=True)
class Plan:
    """What the first process gives another.

    Attributes:
        path: The configuration file.
        settings: What the first was started with.
        pepper: What keys are digested with, if it was given.
        door: The socket that all of them listen at.
        pair: Our end of the pair that we talk over.
    """

    path: Path
    settings: Settings
    pepper: str | None
    door: socket.socket
    pair: socket.socket


@dataclass(slots=True)
class RemoteReservation(Reservation):
    """What the first process holds for a request of ours; 0 where there is nothing to hold."""

    number: int = 0


class RemoteGate(Gate):
    """A gate whose quotas are kept by the first process."""

    def __init__(self, settings: Settings, channel: Channel) -> None:
        config = settings.gateway
        super().__init__(config.bounds, limiter=Limiter(config.quotas))
        self._channel = channel
        self._numbers = count(1)

    async def reserve(self, request: Request) -> Reservation | None:
        """Have the first process take what a request may need; it is asked only if it matters.

        Raises:
            RateLimitError: If a minute's quota is used up.
            BudgetError: If a budget is.
            WorkerLostError: If the first process has ended.
        """
        key = request.key
        if key is None:
            return None
        tokens = needed(request)
        reservation = RemoteReservation((), tokens, key.id)
        if key.quota != NO_QUOTA or key.tenant in self.limiter.tenants:
            reservation.number = next(self._numbers)
            await self._channel.ask("reserve", (reservation.number, key, tokens))
        return reservation

    def settle_tokens(self, reservation: Reservation, tokens: int, *, was_asked: bool) -> None:
        """Tell the first process what a request took."""
        number = reservation.number if isinstance(reservation, RemoteReservation) else 0
        self._channel.tell("settle", (number, reservation.key_id, tokens, was_asked))


def work(plan: Plan) -> None:
    """Serve a share of the connections until the first process says otherwise, or ends."""
    for number in (signal.SIGINT, signal.SIGHUP):  # the first process says what they mean for us
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    uvloop.run(_work(plan))


async def _work(plan: Plan) -> None:
    handlers: dict[str, Handler] = {}
    channel = await Channel.opened(plan.pair, handlers)
    replica = Replica()
    metrics = Metrics.create(None, replica.pools)
    gate = RemoteGate(plan.settings, channel)
    async with (
        opened_observers(plan.settings.gateway) as observers,
        opened_serving(plan.settings, plan.pepper, gate, metrics, observers) as serving,
    ):
        worker = Worker(channel, serving, replica, metrics)
        observers.reload.append(Reloader(plan.path, plan.settings, serving).reload)
        handlers |= worker.handlers(observers)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.ended.set)
        async with worker.connected():
            await worker.serve(plan)
        await replica.close()


class Worker:
    """What the first process may say to us, and what we say to it."""

    def __init__(
        self, channel: Channel, serving: Serving, replica: Replica, metrics: Metrics
    ) -> None:
        self.ended = asyncio.Event()
        self._channel = channel
        self._serving = serving
        self._replica = replica
        self._metrics = metrics
        self._under_way = UnderWay()
        self._has_table = asyncio.Event()
        self._listener: Listener | None = None
        serving.on_begun = in_turn(serving.on_begun, self._begun)
        serving.on_ended = in_turn(serving.on_ended, self._ended)

    def handlers(self, observers: Observers) -> dict[str, Handler]:
        """What to call for each message."""

        async def reload(_: None) -> None:
            observers.on_reload()

        return {
            "table": self._take_table,
            "drain": self._under_way.drain,
            "metrics": self._tell_metrics,
            "reload": reload,
            "end": self._end,
        }

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Listen to the first process; if it ends, so do we."""
        running = asyncio.create_task(self._channel.run())
        running.add_done_callback(lambda _: self.ended.set())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def serve(self, plan: Plan) -> None:
        """Take connections from the first table on until we are to end."""
        app = create_app(self._serving, partial(self._channel.ask, "exposition"))
        waiting = {asyncio.create_task(event.wait()) for event in (self._has_table, self.ended)}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        async with for_apps(app, plan.door, plan.settings.gateway) as self._listener:
            gc.freeze()
            await self.ended.wait()
        for task in waiting:
            task.cancel()

    def _begun(self, exchange: Exchange) -> None:
        self._under_way.begin(exchange.deployment.name)

    def _ended(self, exchange: Exchange) -> None:
        """Tell the first process what the route's rollout could learn from."""
        self._under_way.end(exchange.deployment.name)
        route = self._serving.table.routes.get(exchange.request.route)
        if route is None or route.candidate is None:
            return
        if self._channel.backlog_bytes < MAX_BACKLOG_BYTES:
            alone = dataclasses.replace(exchange, deployment=None, reservation=None, wire=None)  # type: ignore[arg-type]
            self._channel.tell("ended", (exchange.deployment.name, alone))

    async def _take_table(self, described: Described) -> None:
        self._serving.swap(self._replica.take(described, self._serving.config.routes))
        self._has_table.set()

    async def _tell_metrics(self, _: None) -> object:
        return worker_families(self._metrics.registry)

    async def _end(self, _: None) -> None:
        if self.ended.is_set() and self._listener is not None:
            self._listener.hang_up()
        self.ended.set()
