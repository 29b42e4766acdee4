"""One rollout at work: evidence comes in, the guards judge it, the route table is swapped.

What is decided is pure (``guards``, ``rollout``); here it takes effect. Going forward is written
down before it takes effect, going back takes effect before it is written down.

Several gateways may try the same rollout: each adds what it has seen to what is written down, and
any of them may move it. Who finds that another was first takes over what that has written.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from gateway.config import RouteConfig
from gateway.endpoints import ENDPOINTS
from gateway.errors import StateConflictError, StateStoreError
from gateway.evidence import Evidence, Outcome
from gateway.exchange import Exchange
from gateway.guards import judge
from gateway.mirror import Mirror
from gateway.pair import Pair, Reply, compare, is_structured
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
        self._unsaved = Evidence()  # of this stage, and ours
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
        async with self._moving:
            await self._move(move)
        self._changed.set()
        return self.rollout

    async def give_up(self, note: str) -> None:
        """Roll back, unless the rollout has ended already: the candidate cannot go on."""

        def back(rollout: Rollout) -> Rollout:
            if not rollout.is_active:
                return rollout
            return roll_back(rollout, datetime.now(UTC), note, by="guards")

        async with self._moving:
            await self._move(back)
        self._changed.set()

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
        if exchange.status in {"aborted", "rejected"} or not self.rollout.is_active:
            return
        if not ENDPOINTS[exchange.request.endpoint].generates:
            return
        failed = exchange.status == "failed"
        if self.rollout.state == "canary" and exchange.role != "shadow":
            valid = is_structured(exchange.answer.texts)
            outcome = Outcome(failed, valid, exchange.role)
            self._learn(Evidence().with_outcome(outcome))
        mirrored = exchange.role == "incumbent" and not failed
        if mirrored and self._route().mirrors(exchange.exchange_id):
            self.mirror.offer(exchange, self._compare)

    def _compare(self, incumbent: Exchange, shadow: Exchange) -> Pair:
        """Take a mirrored request as evidence."""
        is_sampled = incumbent.request.parsed.get("temperature") != 0  # engines sample unless told
        replies = _reply(incumbent), _reply(shadow)
        pair = compare(*replies, _slice(incumbent), is_sampled=is_sampled)
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
