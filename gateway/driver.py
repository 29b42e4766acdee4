"""Which engine serves which route, and the rollouts that change it: at most one per route."""

import asyncio
import logging
import uuid
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from capture.errors import EngineError
from gateway.errors import RolloutError, RouteNotFoundError
from gateway.exchange import Exchange
from gateway.fleet import Fleet
from gateway.follower import following
from gateway.metrics import Metrics
from gateway.rollout import Rollout, promote, roll_back
from gateway.routing import Deployment, Route
from gateway.runner import Runner
from gateway.serving import Serving
from gateway.starter import Starter
from gateway.state import Saved, StateStore
from gateway.supervisor import Health
from gateway.trial import Trial
from quant.bundle import BundleError

logger = logging.getLogger(__name__)


class RolloutDriver:
    """Brings routes up, starts and ends rollouts, answers operators.

    Attributes:
        serving: What requests need.
        runner: Runs rollouts, and knows those that it runs.
    """

    def __init__(self, serving: Serving, fleet: Fleet, store: StateStore, metrics: Metrics) -> None:
        self.serving = serving
        self.runner = Runner(serving, fleet, store, metrics)
        self._fleet = fleet
        self._store = store
        self._starter = Starter(serving, fleet, store)
        self._metrics = metrics
        self._starting: set[str] = set()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # of a route

    def on_begun(self, exchange: Exchange) -> None:
        """Count a client's request as under way."""
        self.runner.under_way.begin(exchange.deployment.name)

    def on_ended(self, exchange: Exchange) -> None:
        """Count a client's request as ended; a rollout of its route learns from it."""
        self.runner.under_way.end(exchange.deployment.name)
        self.runner.trials.learn(exchange)

    def on_health(self, name: str, health: Health) -> None:
        """Take note of an engine that has ended; a candidate whose engine ends is rolled back."""
        self._metrics.engine_health(name, health)
        for trial in self.runner.trials:
            if health == "down" and name == trial.candidate.name and trial.rollout.is_active:
                self.runner.spawn(trial.give_up("the candidate's engine ended"))
        self.runner.on_changed()

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
        """Start a route's incumbent, unless the right one answers already.

        Where a rollout was about to replace it, it gives its place to the candidate instead.
        """
        active = await asyncio.to_thread(self._store.active, name)
        if active is not None and active.rollout.replaces:
            if self.runner.trials.under_way(name) is None:
                await self._resume_replacement(active)
            return
        route, wanted = self.serving.table.routes.get(name), await self._starter.wanted(name)
        if route is not None and route.incumbent.name == wanted:
            return
        incumbent = self.runner.take_back(wanted) or await self._starter.incumbent(name)
        self.runner.assign(name, Route(incumbent))
        if route is not None:
            self.runner.let_go(route.incumbent, name)

    async def go_on(self) -> None:
        """Go on with rollouts under way, and from now on with those that other gateways begin."""
        for name in self.serving.config.routes:
            await self._join(name)
        self.runner.spawn(following(self.serving.config.routes, self._follow))

    async def _resume_rollout(self, active: Saved) -> None:
        if active.rollout.replaces:
            await self._resume_replacement(active)
            return
        number = active.rollout.id
        try:
            candidate = await self._starter.candidate(active.rollout)
        except (BundleError, EngineError) as error:
            logger.error("rollout %s is rolled back: %s", number, error)  # noqa: TRY400
            await asyncio.to_thread(self._store.give_up, number, "the candidate did not start")
            return
        active = await asyncio.to_thread(self._store.load, number)
        if active.rollout.is_active:
            self.runner.begin(active, (self._incumbent(active.rollout.route), candidate))
        else:  # another gateway has ended it meanwhile
            await self._fleet.stop(candidate.name)

    async def _resume_replacement(self, active: Saved) -> None:
        """Let the candidate take the incumbent's place, be it as it was left or not begun here."""
        rollout, known = active.rollout, self.serving.table.routes.get(active.rollout.route)
        try:
            candidate = await self._starter.placed_candidate(rollout)
            if known is None:
                incumbent = await self._starter.placed_incumbent(rollout.route)
            else:
                incumbent = known.incumbent
                await self._fleet.check_makes_room(incumbent.name)
        except (BundleError, EngineError, RolloutError) as error:
            logger.error("rollout %s is rolled back: %s", rollout.id, error)  # noqa: TRY400
            await self._fleet.stop(rollout.candidate)
            await asyncio.to_thread(self._store.give_up, rollout.id, str(error).splitlines()[0])
            await self._bring_up(rollout.route)
            return
        up = None if known is None else incumbent.name
        await asyncio.wait({self.runner.begin_replacement(active, (incumbent, candidate), up)})

    async def _follow(self, route: str) -> None:
        """Take over what others have begun, moved or ended on a route."""
        trial = self.runner.trials.of(route)
        if trial is not None:
            await trial.follow()
            await self._check_incumbent(trial)
        await self._join(route)

    async def _check_incumbent(self, trial: Trial) -> None:
        """Give up what is compared with a model that others have rolled back."""
        if not trial.rollout.is_active:
            return
        wanted = await self._starter.wanted(trial.rollout.route)
        if wanted not in (trial.incumbent.name, trial.candidate.name):
            await trial.give_up(f"{trial.incumbent.name}, its incumbent, was rolled back")

    async def _join(self, route: str) -> None:
        """Take part in what is tried on a route; if nothing is, bring it up as others left it."""
        async with self._turns[route]:
            if self._is_taken(route):
                return
            active = await asyncio.to_thread(self._store.active, route)
            if active is None:
                await self._bring_up(route)
                return
            self._starting.add(route)
            try:
                await self.runner.retire(route, active.rollout.candidate)
                await self._resume_rollout(active)
            finally:
                self._starting.discard(route)

    async def start(self, route: str, bundle: str, *, replace: bool = False) -> Rollout:
        """Verify a bundle and start its engine; returns once it is in shadow.

        Args:
            route: Its name.
            bundle: Folder of the bundle.
            replace: Whether its engine takes the incumbent's place, for want of room for two; then
                this returns once it answers everybody, in watch.

        Raises:
            RouteNotFoundError: If there is no such route, or it is not up.
            RolloutError: If the route has a rollout under way, or the gateway ends meanwhile; if
                an engine that has to make room is still answering; or if the incumbent cannot be
                replaced.
            BundleError: If the bundle is not what it says it is, or reads text differently.
            EngineError: If it does not generate.
        """
        if route not in self.serving.table.routes:
            raise RouteNotFoundError(f"no route {route!r}", "route")
        self._check_is_free(route)
        async with self._turns[route]:  # we may be looking for rollouts of other gateways
            self._check_is_free(route)
            self._starting.add(route)
        number = uuid.uuid4().hex[:12]
        name = f"{Path(bundle).name}-{number[:4]}"
        steps = () if replace else self.serving.config.routes[route].rollout.steps
        rollout = Rollout(number, route, bundle, name, steps, datetime.now(UTC))
        try:
            return await (self._start_replacing if replace else self._start_beside)(rollout)
        finally:
            self._starting.discard(route)

    def _is_taken(self, route: str) -> bool:
        return route in self._starting or self.runner.trials.under_way(route) is not None

    def _check_is_free(self, route: str) -> None:
        if self._is_taken(route):
            raise RolloutError(f"route {route} has a rollout under way; end that first")

    async def _start_beside(self, rollout: Rollout) -> Rollout:
        try:
            candidate = await self._start_candidate(rollout)
            version = await asyncio.to_thread(self._store.save, rollout, 0)
            self.runner.begin(Saved(rollout, version), (self._incumbent(rollout.route), candidate))
        except BaseException:
            await self._fleet.stop(rollout.candidate)
            raise
        return rollout

    async def _start_replacing(self, rollout: Rollout) -> Rollout:
        """Let a candidate take the incumbent's place; written down before anything is changed."""
        incumbent = self._incumbent(rollout.route)
        if not incumbent.pool.is_serving:
            raise RolloutError(f"{incumbent.name} does not serve; wait until it does")
        await self._fleet.check_makes_room(incumbent.name)
        shown = self.runner.trials.shown_before(rollout.route, incumbent.name)
        rollout = replace(rollout, state="replacing", evidence=shown)
        try:
            candidate = await self._starter.placed_candidate(rollout)
            await self.runner.retire(rollout.route, rollout.candidate)
            version = await asyncio.to_thread(self._store.save, rollout, 0)
        except BaseException:
            await self._fleet.stop(rollout.candidate)
            raise
        deployments = (incumbent, candidate)
        replacing = self.runner.begin_replacement(
            Saved(rollout, version), deployments, incumbent.name
        )
        await asyncio.wait({replacing})
        if replacing.cancelled():
            raise RolloutError("the gateway is ending; the rollout goes on when it is up again")
        error = replacing.result()
        if error is not None:
            raise error
        return await self.runner.trials.find(rollout.id)

    async def _start_candidate(self, rollout: Rollout) -> Deployment:
        """Start a candidate for an operator who waits; given up when the gateway ends."""
        starting = self.runner.spawn(self._verified_candidate(rollout))
        await asyncio.wait({starting})
        if starting.cancelled():
            raise RolloutError("the gateway is ending; start the rollout when it is up again")
        return starting.result()

    async def _verified_candidate(self, rollout: Rollout) -> Deployment:
        """Start a candidate; a bundle that is refused costs nobody a warm engine."""
        candidate = await self._starter.placed_candidate(rollout)
        await self.runner.retire(rollout.route, rollout.candidate)
        await self._fleet.bring_up(candidate.name)
        return candidate

    def _incumbent(self, route: str) -> Deployment:
        return self.serving.table.routes[route].incumbent

    async def promote(self, rollout_id: str) -> Rollout:
        """Move a rollout one stage on, by an operator's word.

        Raises:
            RolloutError: If it is not under way.
        """
        now = datetime.now(UTC)
        return (await self.runner.trials.decide(rollout_id, lambda r: promote(r, now))).rollout

    async def roll_back(self, rollout_id: str, reason: str) -> Rollout:
        """Give all traffic back to the incumbent, also from live while that is still warm.

        Raises:
            RolloutError: If it was rolled back already, or another rollout follows it.
        """

        def back(rollout: Rollout) -> Rollout:
            if rollout.state == "live" and rollout.route in self._starting:
                raise RolloutError(
                    f"rollout {rollout.id} is live and its incumbent makes room for another "
                    "rollout that is being started; try again if that fails"
                )
            return roll_back(rollout, datetime.now(UTC), reason)

        return (await self.runner.trials.decide(rollout_id, back)).rollout
