"""One rollout at work: evidence comes in, the guards judge it, the route table is swapped.

What is decided is pure (``guards``, ``rollout``); here it takes effect. Going forward is written
down before it takes effect, going back takes effect before it is written down.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from gateway.config import RouteConfig
from gateway.endpoints import ENDPOINTS
from gateway.errors import StateStoreError
from gateway.evidence import Evidence, Outcome
from gateway.exchange import Exchange
from gateway.guards import judge
from gateway.mirror import Mirror
from gateway.pair import Reply, compare, is_structured
from gateway.rollout import Rollout, canary_share, roll_back, transition
from gateway.routing import Deployment, Route
from gateway.state import Saved, StateStore

logger = logging.getLogger(__name__)

JUDGE_SECONDS = 0.1
SAVE_SECONDS = 5.0  # evidence of the last seconds is lost when we are killed


class Trial:
    """A rollout with its two deployments; runs until it is live or rolled back.

    Attributes:
        rollout: As it stands now.
        candidate: The deployment being tried.
        ended: Set when the rollout has ended and that is written down.
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
        self._store = store
        self._config = config
        self._assign = assign
        self._saved_at = time.monotonic()
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
                self._assign(Route(self.incumbent))
            await asyncio.sleep(JUDGE_SECONDS)

    async def _judge(self) -> None:
        rollout = self.rollout
        if rollout.state != "rolled_back":
            verdict = judge(rollout.state, rollout.evidence, self._config.guards)
            await self._move(transition(rollout, verdict, datetime.now(UTC)))
        if time.monotonic() - self._saved_at > SAVE_SECONDS and self.rollout.is_active:
            await self._save(self.rollout)
            self._take(self.rollout)

    async def decide(self, move: Callable[[Rollout], Rollout]) -> Rollout:
        """Carry out an operator's move.

        Raises:
            RolloutError: If the state does not allow it.
        """
        async with self._moving:
            await self._move(move(self.rollout))
        self._changed.set()
        return self.rollout

    async def give_up(self, note: str) -> None:
        """Roll back, unless the rollout has ended already: the candidate cannot go on."""
        async with self._moving:
            if self.rollout.is_active:
                await self._move(roll_back(self.rollout, datetime.now(UTC), note, by="guards"))
        self._changed.set()

    def observe(self, exchange: Exchange) -> None:
        """Take a client's ended request as evidence, and mirror it if the incumbent answered."""
        if exchange.status in {"aborted", "rejected"} or not self.rollout.is_active:
            return
        if not ENDPOINTS[exchange.request.endpoint].generates:
            return
        failed = exchange.status == "failed"
        if self.rollout.state == "canary" and exchange.role != "shadow":
            valid = is_structured(exchange.answer.texts)
            outcome = Outcome(failed, valid, exchange.role)
            self._learn(self.rollout.evidence.with_outcome(outcome))
        mirrored = exchange.role == "incumbent" and not failed
        if mirrored and self._route().mirrors(exchange.exchange_id):
            self.mirror.offer(exchange, self._compare)

    def _compare(self, incumbent: Exchange, shadow: Exchange) -> None:
        """Take a mirrored request as evidence."""
        pair = compare(_reply(incumbent), _reply(shadow), _slice(incumbent))
        if self.rollout.is_active:
            self._learn(self.rollout.evidence.with_pair(pair))

    def _learn(self, evidence: Evidence) -> None:
        self.rollout = replace(self.rollout, evidence=evidence)
        self._changed.set()

    async def _move(self, moved: Rollout) -> None:
        """Make a decision take effect and write it down.

        Forward moves that cannot be written down do not happen; evidence that comes in while a
        move is being written belongs to the stage that has ended and is left out of the next.
        """
        if moved is self.rollout:
            return
        before = self.rollout
        if moved.state == "rolled_back":
            self._take(moved)
        await self._save(moved)
        self._take(moved)
        logger.info(
            "rollout %s of route %s: %s -> %s, %.0f%% of traffic",
            *(moved.id, moved.route, before.state, moved.state, 100 * canary_share(moved)),
        )

    def _take(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self._assign(self._route())

    async def save(self) -> None:
        """Write down the evidence so far, so that another start can go on from here."""
        async with self._moving:
            await self._save(self.rollout)

    async def _save(self, rollout: Rollout) -> None:
        self._version = await asyncio.to_thread(self._store.save, rollout, self._version)
        self._saved_at = time.monotonic()

    def _route(self) -> Route:
        if self.rollout.state == "live":
            return Route(self.candidate)
        if self.rollout.state == "rolled_back":
            return Route(self.incumbent)
        share = self._config.rollout.mirror_share
        return Route(self.incumbent, self.candidate, canary_share(self.rollout), share)


def _reply(exchange: Exchange) -> Reply:
    """One side of a pair."""
    answer = exchange.answer
    calls = [answer.tool_calls] if answer.tool_calls else []
    return Reply(
        texts=[*answer.texts, *calls],
        failed=exchange.status != "completed",
        ttft_seconds=exchange.ttft_seconds,
        duration_seconds=exchange.duration_seconds,
    )


def _slice(exchange: Exchange) -> str:
    """Kind of request: endpoint and size of its body, doubling by doubling."""
    bits = len(exchange.request.body).bit_length()
    return f"{exchange.request.endpoint} {2 ** (bits - 1)} to {2**bits} bytes"
