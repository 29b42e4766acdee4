"""The rollouts that this gateway tries, the last of each route, and what its requests tell them."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator

from gateway.errors import RolloutError
from gateway.evidence import Evidence
from gateway.exchange import Exchange
from gateway.observed import Recent
from gateway.rollout import Rollout
from gateway.state import StateStore
from gateway.trial import Trial


class Trials:
    """At most one per route; one that has ended stays until the next begins."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._trials: dict[str, Trial] = {}
        self._recent: defaultdict[str, Recent] = defaultdict(Recent)

    def __iter__(self) -> Iterator[Trial]:
        return iter(list(self._trials.values()))

    def add(self, trial: Trial) -> None:
        """Take a route's next trial."""
        self._trials[trial.rollout.route] = trial

    def of(self, route: str) -> Trial | None:
        """A route's last trial."""
        return self._trials.get(route)

    def under_way(self, route: str) -> Trial | None:
        """A route's trial that has not ended, or whose loser still gives its place back."""
        trial = self._trials.get(route)
        return None if trial is None or is_over(trial) else trial

    def retire(self, route: str) -> None:
        """Forget a route's trial that has ended: there is no way back from it any more."""
        if self.under_way(route) is None:
            self._trials.pop(route, None)

    def learn(self, exchange: Exchange) -> None:
        """Take note of a client's ended request; its route's trial learns from it."""
        self._recent[exchange.request.route].note(exchange)
        trial = self._trials.get(exchange.request.route)
        if trial is not None:
            trial.observe(exchange)

    def shown_before(self, route: str, deployment: str) -> Evidence:
        """What a deployment has shown lately, when it answered all requests of a route."""
        return self._recent[route].evidence(deployment)

    async def find(self, rollout_id: str) -> Rollout:
        """Return a rollout by id.

        Raises:
            RolloutNotFoundError: If there is none.
        """
        for trial in self:
            if trial.rollout.id == rollout_id:
                return trial.rollout
        return (await asyncio.to_thread(self._store.load, rollout_id)).rollout

    async def rollouts(self, route: str | None) -> list[Rollout]:
        """Every rollout, the newest first; of one route if given."""
        saved = await asyncio.to_thread(self._store.rollouts, route)
        running = {trial.rollout.id: trial.rollout for trial in self}
        return [running.get(rollout.id, rollout) for rollout, _ in reversed(saved)]

    async def decide(self, rollout_id: str, move: Callable[[Rollout], Rollout]) -> Trial:
        """Carry out an operator's move.

        Raises:
            RolloutError: If the state does not allow it, or another rollout has followed.
        """
        rollout = await self.find(rollout_id)
        trial = self._trials.get(rollout.route)
        if trial is None or trial.rollout.id != rollout_id:
            raise RolloutError(
                f"rollout {rollout_id} is {rollout.state} and no longer kept warm; to go back "
                "to another model, start a rollout of its bundle"
            )
        await trial.decide(move)
        return trial


def is_over(trial: Trial) -> bool:
    """Whether the rollout has ended and whoever won answers."""
    rollout = trial.rollout
    is_back = not rollout.replaces or trial.up == trial.incumbent.name
    return rollout.state == "live" or (rollout.state == "rolled_back" and is_back)
