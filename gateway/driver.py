"""Which engine serves which route, and the rollouts that change it: at most one per route."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from capture.errors import EngineError
from gateway.drain import UnderWay
from gateway.errors import RolloutError, RouteNotFoundError
from gateway.exchange import Exchange
from gateway.fleet import Fleet
from gateway.follower import following
from gateway.metrics import Metrics
from gateway.mirror import Mirror, MirrorLimits
from gateway.relay import Serving
from gateway.rollout import Rollout, promote, roll_back
from gateway.routing import Deployment, Route
from gateway.starter import Starter
from gateway.state import Saved, StateStore
from gateway.supervisor import Health
from gateway.trial import Trial
from quant.bundle import BundleError

DRAIN_SECONDS = 30.0
Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class RolloutDriver:
    """Brings routes up, starts and ends rollouts, answers operators.

    Attributes:
        serving: What requests need; its table is changed by us alone.
        on_changed: Called when the route table has changed, or the state of an engine.
        drain_elsewhere: Waits for requests to a deployment that other processes have under way.
    """

    def __init__(self, serving: Serving, fleet: Fleet, store: StateStore, metrics: Metrics) -> None:
        self.on_changed: Callable[[], None] = lambda: None
        self.drain_elsewhere: Callable[[str], Awaitable[None]] = _nobody
        self.serving = serving
        self._fleet = fleet
        self._store = store
        self._starter = Starter(serving, fleet, store)
        self._metrics = metrics
        self._trials: dict[str, Trial] = {}
        self._starting: set[str] = set()
        self._under_way = UnderWay()
        self._tasks: set[asyncio.Task[Any]] = set()

    def on_begun(self, exchange: Exchange) -> None:
        """Count a client's request as under way."""
        self._under_way.begin(exchange.deployment.name)

    def on_ended(self, exchange: Exchange) -> None:
        """Count a client's request as ended; a rollout of its route learns from it."""
        self._under_way.end(exchange.deployment.name)
        self.learn(exchange)

    def learn(self, exchange: Exchange) -> None:
        """Let a rollout of its route, if there is one, learn from a client's ended request."""
        trial = self._trials.get(exchange.request.route)
        if trial is not None:
            trial.observe(exchange)

    def on_health(self, name: str, health: Health) -> None:
        """Take note of an engine that has ended; a candidate whose engine ends is rolled back."""
        self._metrics.engine_health(name, health)
        for trial in self._trials.values():
            if health == "down" and name == trial.candidate.name and trial.rollout.is_active:
                self._spawn(trial.give_up("the candidate's engine ended"))
        self.on_changed()

    async def bring_up(self) -> None:
        """Let every route be answered: by the last promoted bundle, or the configured model.

        Raises:
            EngineError: If an engine does not start.
            BundleError: If a bundle is not what it says it is.
        """
        routes = self.serving.config.routes
        resuming = [asyncio.create_task(self._bring_up(name)) for name in routes]
        try:
            await asyncio.gather(*resuming)
        finally:
            for task in resuming:  # after one that failed the others need not go on
                task.cancel()
            await asyncio.gather(*resuming, return_exceptions=True)

    async def _bring_up(self, name: str) -> None:
        """Start a route's incumbent, unless the right one answers already."""
        route = self.serving.table.routes.get(name)
        known = None if route is None else route.incumbent
        incumbent = await self._starter.incumbent(name, known)
        if incumbent is not known:
            self._assign(name, Route(incumbent))
        if known is not None and incumbent is not known:
            await self._drain(known.name)

    async def go_on(self) -> None:
        """Go on with rollouts under way, and from now on with those that other gateways begin."""
        for name in self.serving.config.routes:
            active = await asyncio.to_thread(self._store.active, name)
            if active is not None:
                await self._resume_rollout(active)
        self._spawn(following(self.serving.config.routes, self._follow))

    async def _resume_rollout(self, active: Saved) -> None:
        number = active.rollout.id
        try:
            candidate = await self._starter.candidate(active.rollout)
        except (BundleError, EngineError) as error:
            logger.error("rollout %s is rolled back: %s", number, error)  # noqa: TRY400
            await asyncio.to_thread(self._store.give_up, number, "the candidate did not start")
            return
        active = await asyncio.to_thread(self._store.load, number)
        if active.rollout.is_active:
            self._begin(active, candidate)
        else:  # another gateway has ended it meanwhile
            await self._fleet.stop(candidate.name)

    async def _follow(self, route: str) -> None:
        """Take over what others have begun, moved or ended on a route."""
        trial = self._trials.get(route)
        if trial is not None:
            was_live = trial.rollout.state == "live"
            await trial.follow()
            if was_live and trial.rollout.state == "rolled_back":
                await self._drain(trial.candidate.name)
        if route in self._starting or (trial is not None and trial.rollout.is_active):
            return
        self._starting.add(route)
        try:
            active = await asyncio.to_thread(self._store.active, route)
            if active is None:
                await self._bring_up(route)
            else:
                await self._retire(route)
                await self._resume_rollout(active)
        finally:
            self._starting.discard(route)

    async def start(self, route: str, bundle: str) -> Rollout:
        """Verify a bundle, start its engine and begin to mirror; returns once it is in shadow.

        Raises:
            RouteNotFoundError: If there is no such route, or it is not up.
            RolloutError: If the route has a rollout under way, or the gateway ends meanwhile.
            BundleError: If the bundle is not what it says it is, or reads text differently.
            EngineError: If it does not generate.
        """
        if route not in self.serving.table.routes:
            raise RouteNotFoundError(f"no route {route!r}", "route")
        under_way = self._trials.get(route)
        if route in self._starting or (under_way is not None and under_way.rollout.is_active):
            raise RolloutError(f"route {route} has a rollout under way; end that first")
        self._starting.add(route)
        number = uuid.uuid4().hex[:12]
        name = f"{Path(bundle).name}-{number[:4]}"
        try:
            await self._retire(route)
            steps = self.serving.config.routes[route].rollout.steps
            rollout = Rollout(number, route, bundle, name, steps, datetime.now(UTC))
            candidate = await self._start_candidate(rollout)
            version = await asyncio.to_thread(self._store.save, rollout, 0)
            self._begin(Saved(rollout, version), candidate)
        except BaseException:
            await self._fleet.stop(name)
            raise
        finally:
            self._starting.discard(route)
        return rollout

    async def _start_candidate(self, rollout: Rollout) -> Deployment:
        """Start a candidate for an operator who waits; given up when the gateway ends."""
        starting = self._spawn(self._starter.candidate(rollout))
        await asyncio.wait({starting})
        if starting.cancelled():
            raise RolloutError("the gateway is ending; start the rollout when it is up again")
        return starting.result()

    async def _retire(self, route: str) -> None:
        """Stop engines of a route that answer no more; they were kept warm until now."""
        needed = self.serving.table.routes[route].incumbent.name
        for name in self._fleet.names(route):
            if name != needed:
                await self._drain(name)

    def _begin(self, saved: Saved, candidate: Deployment) -> None:
        """Mirror to the candidate and judge it from now on."""
        name = saved.rollout.route
        config = self.serving.config.routes[name]
        incumbent = self.serving.table.routes[name].incumbent
        limits = MirrorLimits(config.rollout.mirror_concurrency, config.rollout.mirror_queue_bytes)
        trial = Trial(
            saved,
            (incumbent, candidate),
            self._store,
            config,
            lambda route: self._assign(name, route),
            Mirror(candidate, self.serving.spool, self._metrics, limits),
        )
        self._trials[name] = trial
        self._spawn(self._run(trial))

    async def _run(self, trial: Trial) -> None:
        """Run a trial to its end; whoever lost stays warm if that is the incumbent."""
        try:
            await trial.run()
        finally:
            await trial.mirror.close()
        if trial.rollout.state == "rolled_back":
            await self._drain(trial.candidate.name)

    def _spawn(self, work: Coroutine[None, None, Result]) -> asyncio.Task[Result]:
        """Begin something that ends with us."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _drain(self, name: str) -> None:
        """Stop an engine when the requests it is answering have ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await asyncio.gather(self._under_way.drain(name), self.drain_elsewhere(name))
        await self._fleet.stop(name)

    async def close(self) -> None:
        """Stop starting, judging and mirroring; what is undecided goes on at the next start."""
        for trial in self._trials.values():
            if trial.rollout.is_active:
                await trial.save()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _assign(self, name: str, route: Route) -> None:
        self.serving.table = self.serving.table.with_route(name, route)
        self.on_changed()

    # Operators.

    async def find(self, rollout_id: str) -> Rollout:
        """Return a rollout by id.

        Raises:
            RolloutNotFoundError: If there is none.
        """
        for trial in self._trials.values():
            if trial.rollout.id == rollout_id:
                return trial.rollout
        return (await asyncio.to_thread(self._store.load, rollout_id)).rollout

    async def rollouts(self, route: str | None) -> list[Rollout]:
        """Every rollout, the newest first; of one route if given."""
        saved = await asyncio.to_thread(self._store.rollouts, route)
        running = {trial.rollout.id: trial.rollout for trial in self._trials.values()}
        return [running.get(rollout.id, rollout) for rollout, _ in reversed(saved)]

    async def promote(self, rollout_id: str) -> Rollout:
        """Move a rollout one stage on.

        Raises:
            RolloutError: If it is not under way.
        """
        return await self._decide(rollout_id, lambda r: promote(r, datetime.now(UTC)))

    async def roll_back(self, rollout_id: str, reason: str) -> Rollout:
        """Give all traffic back to the incumbent, also from live while that is still warm.

        Raises:
            RolloutError: If it was rolled back already, or another rollout has followed it.
        """
        return await self._decide(rollout_id, lambda r: roll_back(r, datetime.now(UTC), reason))

    async def _decide(self, rollout_id: str, move: Callable[[Rollout], Rollout]) -> Rollout:
        rollout = await self.find(rollout_id)
        trial = self._trials.get(rollout.route)
        if trial is None or trial.rollout.id != rollout_id:
            raise RolloutError(
                f"rollout {rollout_id} is {rollout.state} and no longer kept warm; to go back "
                "to another model, start a rollout of its bundle"
            )
        was_live = trial.rollout.state == "live"
        moved = await trial.decide(move)
        if was_live:
            self._spawn(self._drain(trial.candidate.name))
        return moved


async def _nobody(_: str) -> None:
    """No other process has anything under way."""
