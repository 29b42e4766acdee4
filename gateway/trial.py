"""One rollout at work: evidence comes in, the guards judge it, the route table is swapped.

What is decided is pure (``guards``, ``rollout``); here it takes effect. Going forward is written
down before it takes effect. Going back takes effect at once, whatever the store does meanwhile, and
is written down on top of whatever others have written by then.

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
from gateway.ledger import Ledger
from gateway.mirror import Mirror
from gateway.moments import Moments
from gateway.observed import is_telling, outcome_of, pair_of
from gateway.pair import Pair
from gateway.rollout import Decision, Rollout, canary_share, judged, roll_back
from gateway.routing import Deployment, Route, route_of
from gateway.state import Saved, StateStore

logger = logging.getLogger(__name__)

JUDGE_SECONDS = 0.1


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
        on_lost: Called once it has been rolled back, whether or not that is written down yet.
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
        self.rollout = saved.rollout
        self.incumbent, self.candidate = deployments
        self.mirror = mirror
        self.up: str | None = self.incumbent.name
        self.timed_from = -inf
        self.ended = asyncio.Event()
        self.exchanging = asyncio.Lock()
        self.on_lost: Callable[[], object] = lambda: None
        self._ledger = Ledger(saved, store)
        self._config = config
        self._assign = assign
        self._going_back: Decision | None = None  # has taken effect and is not written down yet
        self._moments = Moments()
        self._changed = asyncio.Event()
        self._moving = asyncio.Lock()

    async def run(self) -> None:
        """Look at new evidence a few times a second until the rollout has ended.

        When the state store fails, nothing moves forward: the incumbent gets all traffic until
        the store answers again.
        """
        self._take(self.rollout)
        guarding = asyncio.create_task(self._guard())
        try:
            while self.rollout.is_active:
                await self._changed.wait()
                self._changed.clear()
                await self._judge()
                await asyncio.sleep(JUDGE_SECONDS)
            if self._going_back is not None:
                await self._judge()
        finally:
            guarding.cancel()

    async def _guard(self) -> None:
        """Go back while something is being written down, too: that can take long."""
        while self.rollout.is_active:
            await asyncio.sleep(JUDGE_SECONDS)
            if self._moving.locked():
                self._turn_back(self._judged(self.rollout))

    async def _judge(self) -> None:
        try:
            async with self._moving:
                await self._move(self._judged)
                if self._ledger.is_due and self.rollout.is_active:
                    await self._save_evidence()
                    self._take(self.rollout)
        except StateStoreError:
            logger.exception("rollout %s: the state store failed", self.rollout.id)
            if not self.rollout.replaces:
                self._assign(Route(self.incumbent))

    def _judged(self, rollout: Rollout) -> Rollout:
        return judged(rollout, self._config.guards, datetime.now(UTC))

    async def decide(self, move: Callable[[Rollout], Rollout]) -> Rollout:
        """Carry out an operator's move.

        Raises:
            RolloutError: If the state does not allow it.
        """
        try:
            is_back = self._turn_back(move(self.rollout))
            async with self._moving:
                await (self._write_way_back() if is_back else self._move(move))
        finally:
            self._changed.set()
        return self.rollout

    async def give_up(self, note: str) -> None:
        """Roll back, unless the rollout has ended already: the candidate cannot go on."""
        now = datetime.now(UTC)
        try:
            await self.decide(lambda r: roll_back(r, now, note, by="guards") if r.is_active else r)
        except StateStoreError:  # it has gone back, and ``follow`` writes that down
            logger.exception("rollout %s: the state store failed", self.rollout.id)

    def switch(self, up: str | None) -> None:
        """Say which deployment is up now; clients that wait for it are let in."""
        self.up = up
        self._assign(self._route())

    async def follow(self) -> None:
        """Take over what another gateway has written down since we last did.

        A way back that the store would not take when it was made is written down now.

        Raises:
            StateStoreError: If the state store fails.
        """
        async with self._moving:
            is_due = self._ledger.is_due and self._ledger.unsaved != Evidence()
            if await self._catch_up() or is_due:
                self._changed.set()

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
        pair = pair_of(incumbent, shadow, is_spaced=is_spaced)
        if self.rollout.is_active:
            self._learn(Evidence().with_pair(pair))
        return pair

    def _learn(self, seen: Evidence) -> None:
        self.rollout = replace(self.rollout, evidence=self.rollout.evidence + seen)
        self._ledger.unsaved += seen
        self._changed.set()

    def _turn_back(self, moved: Rollout) -> bool:
        """Let a way back take effect, if that is one; ``_write_way_back`` is to follow."""
        is_back = moved.state == "rolled_back" != self.rollout.state
        if is_back:
            self._going_back = moved.history[-1]
            self._take(moved)
            self._changed.set()
        return is_back

    async def _move(self, decide: Callable[[Rollout], Rollout]) -> None:
        """Make a decision take effect and write it down; decide anew if another was first.

        Forward moves that cannot be written down do not happen; evidence that comes in while a
        move is being written belongs to the stage that has ended and is left out of the next.
        """
        while self._going_back is None:
            before = self.rollout
            moved = decide(before)
            if moved is before:
                return
            if moved.state == "rolled_back":
                self._turn_back(moved)
                continue
            try:
                await self._ledger.save(moved)
            except StateConflictError:
                await self._catch_up()
                continue
            if self._going_back is None:
                self._begin(moved)
                return
        await self._write_way_back()

    async def _write_way_back(self) -> None:
        while (decision := self._going_back) is not None:
            stage = len(self.rollout.history) - 1
            moved = await self._ledger.save_way_back(decision, stage)
            self._going_back = None
            self._begin(moved)

    def _begin(self, moved: Rollout) -> None:
        """Go on in a stage that is written down."""
        self._ledger.unsaved = Evidence()
        self._take(moved)
        source, share = moved.history[-1].source, 100 * canary_share(moved)
        told = (moved.id, moved.route, source, moved.state, share)
        logger.info("rollout %s of route %s: %s -> %s, %.0f%% of traffic", *told)

    async def _catch_up(self) -> bool:
        """Read what is written down; in the same stage our evidence of late comes on top.

        Returns:
            Whether there was anything new.
        """
        saved = await self._ledger.news()
        if self._going_back is not None:
            await self._write_way_back()
            return True
        if saved is None:
            return False
        if len(saved.history) == len(self.rollout.history):
            saved = replace(saved, evidence=saved.evidence + self._ledger.unsaved)
        else:
            self._ledger.unsaved = Evidence()
            logger.info("rollout %s is %s: another gateway moved it", saved.id, saved.state)
        self._take(saved)
        return True

    def _take(self, rollout: Rollout) -> None:
        has_lost = rollout.state == "rolled_back" != self.rollout.state
        self.rollout = rollout
        if not rollout.is_active:
            self.ended.set()
        if self.mirror.scorer is not None:
            self.mirror.scorer.may_ask = rollout.state == "shadow"
        self._assign(self._route())
        if has_lost:
            self.on_lost()

    async def save(self) -> None:
        """Write down how far it is, so that another start can go on from here.

        Raises:
            StateStoreError: If the state store fails.
        """
        async with self._moving:
            await self._write_way_back()
            await self._save_evidence()

    async def _save_evidence(self) -> None:
        while self.rollout.is_active:
            try:
                await self._ledger.save_evidence(self.rollout)
            except StateConflictError:
                await self._catch_up()
            else:
                return

    def _route(self) -> Route:
        mirror_share = self._config.rollout.mirror_share
        return route_of(self.rollout, self.incumbent, self.candidate, mirror_share, self.up)
