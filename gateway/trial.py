"""One rollout at work: evidence comes in, the guards judge it, the route table is swapped.

What is decided is pure (``guards``, ``rollout``); here it takes effect. Going forward is written
down before it takes effect, going back takes effect before it is written down.

Where the candidate replaces the incumbent only one of them is up, and whoever exchanges their
engines says which (``switch``); clients wait while it is not the one that should answer.

Several gateways may try the same rollout: each adds what it has seen to what is written down, and
any of them may move it. Who finds that another was first takes over what that has written.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from math import inf

from gateway.config import RouteConfig
from gateway.errors import StateConflictError, StateStoreError
from gateway.evidence import Evidence
from gateway.exchange import Exchange
from gateway.guards import judge
from gateway.mirror import Mirror
from gateway.moments import Moments
from gateway.observed import is_telling, outcome_of, reply_of, slice_of
from gateway.pair import Pair, compare
from gateway.rollout import Rollout, canary_share, roll_back, transition
from gateway.routing import Deployment, Route
from gateway.state import Saved, StateStore

logger = logging.getLogger(__name__)

JUDGE_SECONDS = 0.1
SAVE_SECONDS = 2.0  # evidence of the last seconds is lost when we are killed


class Trial:
    """A rollout with its two deployments; runs until it is live or rolled back.

    Attributes:
        rollout: As it stands now.
        incumbent: The deployment that clients go back to.
        candidate: The deployment being tried.
        up: Name of the only one that is up, where one replaces the other; None while neither is.
        timed_from: Monotonic seconds from which on answers tell how fast the candidate is, where
            it replaces the incumbent: a crowd has waited for it.
        ended: Set when the rollout is live or rolled back.
        exchanging: Held by whoever exchanges the two engines.
    """

    def __init__(
        self,
        saved: Saved,
        deployments: tuple[Deployment, Deployment],
        store: StateStore,
        config: RouteConfig,
        assign: Callable[[Route], None],
        mirror: Mirror,
    ) -> None:
        """Prepare; ``run`` does the work.

        Args:
            saved: The rollout as it lies in the store.
            deployments: Incumbent and candidate.
            store: Where moves are written down.
            config: The route's guards and shares.
            assign: Puts a route into the serving table.
            mirror: Asks the candidate; closed by whoever made it.
        """
        self.rollout, self._version = saved
        self.incumbent, self.candidate = deployments
        self.mirror = mirror
        self.up: str | None = self.incumbent.name
        self.timed_from = -inf
        self.ended = asyncio.Event()
        self.exchanging = asyncio.Lock()
        self._store = store
        self._config = config
        self._assign = assign
        self._unsaved = Evidence()  # of this stage, and ours
        self._saved_at = time.monotonic()
        self._moments = Moments()
        self._changed = asyncio.Event()
        self._moving = asyncio.Lock()

    async def run(self) -> None:
        """Look at new evidence a few times a second until the rollout has ended.

        When the state store fails, nothing moves forward: the incumbent gets all traffic until
        the store answers again.
        """
        self._take(self.rollout)
        while self.rollout.is_active:
            await self._changed.wait()
            self._changed.clear()
            try:
                async with self._moving:
                    await self._judge()
            except StateStoreError:
                logger.exception("rollout %s: the state store failed", self.rollout.id)
                if not self.rollout.replaces:
                    self._assign(Route(self.incumbent))
            await asyncio.sleep(JUDGE_SECONDS)

    async def _judge(self) -> None:
        await self._move(self._judged)
        if self._is_due and self.rollout.is_active:
            await self._save_evidence()
            self._take(self.rollout)

    def _judged(self, rollout: Rollout) -> Rollout:
        if rollout.state == "rolled_back":
            return rollout
        guards, stages = self._config.guards, rollout.num_stages
        verdict = judge(rollout.state, rollout.evidence, guards, stages)
        return transition(rollout, verdict, datetime.now(UTC))

    async def decide(self, move: Callable[[Rollout], Rollout]) -> Rollout:
        """Carry out an operator's move.

        Raises:
            RolloutError: If the state does not allow it.
        """
        try:
            async with self._moving:
                await self._move(move)
        finally:
            self._changed.set()
        return self.rollout

    async def give_up(self, note: str) -> None:
        """Roll back, unless the rollout has ended already: the candidate cannot go on."""

        def back(rollout: Rollout) -> Rollout:
            if not rollout.is_active:
                return rollout
            return roll_back(rollout, datetime.now(UTC), note, by="guards")

        await self.decide(back)

    def switch(self, up: str | None) -> None:
        """Say which deployment is up now; clients that wait for it are let in."""
        self.up = up
        self._assign(self._route())

    @property
    def is_over(self) -> bool:
        """Whether the rollout has ended and whoever won answers."""
        is_back = not self.rollout.replaces or self.up == self.incumbent.name
        return self.rollout.state == "live" or (self.rollout.state == "rolled_back" and is_back)

    async def follow(self) -> None:
        """Take over what another gateway has written down since we last did.

        A way back that the store would not take when it was made is written down now.

        Raises:
            StateStoreError: If the state store fails.
        """
        async with self._moving:
            if await self._catch_up() or (self._is_due and self._unsaved != Evidence()):
                self._changed.set()

    @property
    def _is_due(self) -> bool:
        """Whether it is time to write down what we have seen."""
        return time.monotonic() - self._saved_at > SAVE_SECONDS

    def observe(self, exchange: Exchange) -> None:
        """Take a client's ended request as evidence, and mirror it if the incumbent answered."""
        if not (is_telling(exchange) and self.rollout.is_active):
            return
        if self.rollout.state == "canary" or self._is_watched(exchange):
            outcome = outcome_of(exchange, timed_from=self.timed_from)
            is_spaced = self._is_watched(exchange) and self._moments.begins(time.monotonic())
            self._learn(Evidence().with_outcome(replace(outcome, is_spaced=is_spaced)))
        mirrored = exchange.role == "incumbent" and exchange.status != "failed"
        if mirrored and self._route().mirrors(exchange.exchange_id):
            self.mirror.offer(exchange, self._compare)

    def _is_watched(self, exchange: Exchange) -> bool:
        return self.rollout.state == "watch" and exchange.role == "candidate"

    def _compare(self, incumbent: Exchange, shadow: Exchange, *, is_spaced: bool) -> Pair:
        """Take a mirrored request as evidence."""
        is_sampled = incumbent.request.parsed.get("temperature") != 0  # engines sample unless told
        replies = reply_of(incumbent), reply_of(shadow)
        pair = compare(*replies, slice_of(incumbent), is_sampled=is_sampled)
        pair = replace(pair, is_spaced=is_spaced)
        if self.rollout.is_active:
            self._learn(Evidence().with_pair(pair))
        return pair

    def _learn(self, seen: Evidence) -> None:
        self.rollout = replace(self.rollout, evidence=self.rollout.evidence + seen)
        self._unsaved += seen
        self._changed.set()

    async def _move(self, decide: Callable[[Rollout], Rollout]) -> None:
        """Make a decision take effect and write it down; decide anew if another was first.

        Forward moves that cannot be written down do not happen; evidence that comes in while a
        move is being written belongs to the stage that has ended and is left out of the next.
        """
        while True:
            before = self.rollout
            moved = decide(before)
            if moved is before:
                return
            if moved.state == "rolled_back":
                self._take(moved)
            try:
                await self._save(moved)
                break
            except StateConflictError:
                await self._catch_up()
        self._unsaved = Evidence()
        self._take(moved)
        logger.info(
            "rollout %s of route %s: %s -> %s, %.0f%% of traffic",
            *(moved.id, moved.route, before.state, moved.state, 100 * canary_share(moved)),
        )

    async def _catch_up(self) -> bool:
        """Read what is written down; in the same stage our evidence of late comes on top.

        Returns:
            Whether there was anything new.
        """
        saved, version = await asyncio.to_thread(self._store.load, self.rollout.id)
        if version == self._version:
            if len(saved.history) < len(self.rollout.history):
                await self._save(self.rollout)
            return False
        self._version = version
        if len(saved.history) == len(self.rollout.history):
            saved = replace(saved, evidence=saved.evidence + self._unsaved)
        else:
            self._unsaved = Evidence()
            logger.info("rollout %s is %s: another gateway moved it", saved.id, saved.state)
        self._take(saved)
        return True

    def _take(self, rollout: Rollout) -> None:
        self.rollout = rollout
        if not rollout.is_active:
            self.ended.set()
        if self.mirror.scorer is not None:
            self.mirror.scorer.may_ask = rollout.state == "shadow"
        self._assign(self._route())

    async def save(self) -> None:
        """Write down the evidence so far, so that another start can go on from here."""
        async with self._moving:
            await self._save_evidence()

    async def _save_evidence(self) -> None:
        while True:
            ours, self._unsaved = self._unsaved, Evidence()
            try:
                await self._save(self.rollout)
            except StateConflictError:
                self._unsaved = ours + self._unsaved
                await self._catch_up()
            except StateStoreError:
                self._unsaved = ours + self._unsaved
                raise
            else:
                return

    async def _save(self, rollout: Rollout) -> None:
        self._version = await asyncio.to_thread(self._store.save, rollout, self._version)
        self._saved_at = time.monotonic()

    def _route(self) -> Route:
        rollout, share = self.rollout, canary_share(self.rollout)
        entitled = self.candidate if share == 1.0 else self.incumbent
        is_up = self.up == entitled.name and rollout.state != "replacing"
        is_held = rollout.replaces and not is_up
        if not rollout.is_active:
            return Route(entitled, is_held=is_held)
        if rollout.replaces:
            return Route(self.incumbent, self.candidate, share, is_held=is_held)
        return Route(self.incumbent, self.candidate, share, self._config.rollout.mirror_share)
