"""Trials at work: each is run to its end, and the engine that has lost is stopped or set aside."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from gateway.drain import UnderWay
from gateway.errors import RolloutError, StateStoreError
from gateway.fleet import Fleet
from gateway.metrics import Metrics
from gateway.mirror import Mirror, MirrorLimits
from gateway.replacement import Replacement
from gateway.routing import Deployment, Route
from gateway.scorer import Scorer
from gateway.serving import Serving
from gateway.state import Saved, StateStore
from gateway.trial import Trial
from gateway.trials import Trials

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Pair = tuple[Deployment, Deployment]


class Runner:
    """Runs trials.

    Attributes:
        on_changed: Called when the route table has changed.
        serving: What requests need; its table is changed by us alone.
        under_way: Clients' requests.
        trials: All of them.
    """

    def __init__(self, serving: Serving, fleet: Fleet, store: StateStore, metrics: Metrics) -> None:
        self.on_changed: Callable[[], None] = lambda: None
        self.serving = serving
        self.under_way = UnderWay()
        self.trials = Trials(store)
        self._fleet = fleet
        self._store = store
        self._metrics = metrics
        self._replacement = Replacement(fleet, self.under_way)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leaving: dict[str, tuple[Deployment, asyncio.Task[None]]] = {}

    def assign(self, name: str, route: Route) -> None:
        """Put a route into the table."""
        self.serving.swap(self.serving.table.with_route(name, route))
        self.on_changed()

    def spawn(self, work: Coroutine[None, None, Result]) -> asyncio.Task[Result]:
        """Begin something that ends with us."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def begin(self, saved: Saved, deployments: Pair) -> None:
        """Mirror to the candidate and judge it from now on."""
        self.spawn(self._run(self._trial(saved, deployments)))

    def begin_replacement(
        self, saved: Saved, deployments: Pair, up: str | None
    ) -> asyncio.Task[Exception | None]:
        """Exchange engines and judge the candidate; the task gives why it does not answer."""
        trial = self._trial(saved, deployments)
        trial.switch(up)
        drain_seconds = self.serving.config.routes[saved.rollout.route].rollout.drain_seconds
        replacing = self.spawn(self._replacement.forward(trial, drain_seconds))
        self.spawn(self._run(trial))
        return replacing

    def _trial(self, saved: Saved, deployments: Pair) -> Trial:
        """Make a trial of an incumbent and a candidate."""
        name = saved.rollout.route
        config = self.serving.config.routes[name]
        limits = MirrorLimits(config.rollout.mirror_concurrency, config.rollout.mirror_queue_bytes)
        bundle, candidate, metrics = Path(saved.rollout.bundle), deployments[1], self._metrics
        scorer = Scorer(candidate, bundle, self._fleet.capture, metrics.shadow)
        mirror = Mirror(candidate, self.serving.spool, metrics, limits, scorer)

        def assign(route: Route) -> None:
            if self.trials.of(name) is trial:  # or another rollout follows already
                self.assign(name, route)

        def end() -> None:
            if self.trials.of(name) is trial:
                self.spawn(self._end(trial))

        trial = Trial(saved, deployments, self._store, config, assign, mirror)
        trial.on_lost = end
        self.trials.add(trial)
        return trial

    async def _run(self, trial: Trial) -> None:
        """Run a trial to its end; the incumbent stays warm if it loses."""
        try:
            await trial.run()
        finally:
            await trial.mirror.close()

    async def _end(self, trial: Trial) -> None:
        """Stop the engine of a candidate that has lost; the store may still have to be told."""
        route = trial.rollout.route
        if not trial.rollout.replaces:
            await trial.mirror.close()
            await self.drain(trial.candidate, route)
            return
        if trial.exchanging.locked():
            await self._fleet.stop(trial.candidate.name)  # nobody waits for it any more
        seconds = self.serving.config.routes[route].rollout.drain_seconds
        await self._replacement.back(trial, seconds)

    def let_go(self, deployment: Deployment, route: str) -> None:
        """Drain a deployment; until its engine is stopped it can be taken back."""
        leaving = self.spawn(self.drain(deployment, route))
        self._leaving[deployment.name] = deployment, leaving

    def take_back(self, name: str) -> Deployment | None:
        """Return a deployment that was let go, if its engine still runs; it stays now."""
        deployment, leaving = self._leaving.pop(name, (None, None))
        if leaving is not None:
            leaving.cancel()
        return deployment

    async def drain(self, deployment: Deployment, route: str) -> None:
        """Stop an engine when the requests it is answering have ended, or their time is up."""
        seconds = self.serving.config.routes[route].timeouts.total_seconds
        await self.under_way.is_drained(deployment.name, seconds)
        self._leaving.pop(deployment.name, None)
        await self._fleet.stop(deployment.name)

    async def retire(self, route: str, candidate: str) -> None:
        """Make room for a candidate: stop engines that were kept warm until now.

        Raises:
            RolloutError: If one is still answering clients, or clients have gone back to another
                model meanwhile; nothing was stopped.
            StateStoreError: If the end of the last rollout is not written down and cannot be.
        """
        last = self.trials.of(route)
        if last is not None:
            await last.save()
        incumbent = self.serving.table.routes[route].incumbent
        needed = {incumbent.name, candidate}
        kept = [name for name in self._fleet.names(route) if name not in needed]
        seconds = self.serving.config.routes[route].rollout.drain_seconds
        for name in kept:
            if not await self.under_way.is_drained(name, seconds):
                raise RolloutError(
                    f"{name}, which has to make room, is still answering requests after "
                    f"{seconds:g} s; try again when they have ended, or raise rollout.drain_seconds"
                )
        if self.serving.table.routes[route].incumbent is not incumbent:
            raise RolloutError(f"{incumbent.name} was rolled back meanwhile; try again")
        self.trials.retire(route)
        for name in kept:
            await self._fleet.stop(name)

    async def close(self) -> None:
        """Stop starting, judging and mirroring; what is undecided goes on at the next start."""
        for trial in self.trials:
            try:
                await trial.save()
            except StateStoreError:
                logger.exception("rollout %s: the state store failed", trial.rollout.id)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
