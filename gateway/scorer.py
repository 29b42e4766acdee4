"""Scores of the incumbent's answers by the candidate, as the mirror sees to them.

While an answer is scored the candidate does nothing else: what a shadow request shows of its
speed is not to depend on it. A score that fails, or finds no room, is counted and nothing more.
"""

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capture.config import CaptureConfig
from gateway.errors import GatewayError, WorkerLostError
from gateway.exchange import Exchange
from gateway.pair_metrics import PairMetrics
from gateway.routing import Deployment
from gateway.scoring import Scored, ScoreTask, ScoringPlan, work
from gateway.spawned import spawned
from gateway.turns import Turns

if TYPE_CHECKING:
    from gateway.channel import Channel

RECORDED = ("tap", "wire")
MAX_WAITING = 256  # answers between the moment they were given and their score
TURN_SECONDS = 20.0  # for which a score may hold up shadow requests
MAX_FAILURES = 5  # of the candidate in a row, then it is asked no more
START_AGAIN_SECONDS = 1.0
logger = logging.getLogger(__name__)


class Scorer:
    """Has one candidate score answers, by a process of its own (``gateway.scoring``).

    Attributes:
        turns: Shadow requests go side by side in them, scores alone.
        may_ask: Whether the candidate may be asked now: not while clients are answered by it.
    """

    def __init__(
        self,
        candidate: Deployment,
        bundle: Path,
        captured: CaptureConfig,
        metrics: PairMetrics,
    ) -> None:
        """Prepare; the process is started when there is something to be scored.

        Args:
            candidate: Who scores.
            bundle: Its folder.
            captured: Names the spool that the incumbent's rows come to, and the scores go to.
            metrics: Count what becomes of them.
        """
        self.turns = Turns()
        self.may_ask = True
        self._candidate = candidate
        self._plan = partial(ScoringPlan, captured, bundle, candidate.revision)
        self._metrics = metrics
        self._channel: Channel | None = None
        self._expected: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_failures = 0  # one after the other
        self._is_wanted = asyncio.Event()
        self._running = asyncio.create_task(self._run())

    def expect(self, incumbent: Exchange) -> None:
        """Look out for the rows of an ended exchange that goes to the candidate too."""
        is_recorded = incumbent.capture in RECORDED
        if not self.may_ask or not is_recorded:
            return
        self._is_wanted.set()
        if self._channel is None:
            return
        if len(self._expected) >= MAX_WAITING or self._num_failures >= MAX_FAILURES:
            self._count(incumbent.request.route, "skipped")
            return
        self._expected.add(incumbent.exchange_id)
        self._channel.tell("expect", incumbent.exchange_id)

    def forget(self, exchange_id: str) -> None:
        """Look out for them no longer."""
        if exchange_id in self._expected:
            self._expected.discard(exchange_id)
            if self._channel is not None:
                self._channel.tell("forget", exchange_id)

    async def offer(self, incumbent: Exchange, shadow: Exchange) -> None:
        """Score an exchange that was expected, if its shadow has an answer; does not wait for it.

        What is kept until then is small: neither of the two.
        """
        if incumbent.exchange_id not in self._expected:
            return
        if shadow.status != "completed":
            self.forget(incumbent.exchange_id)
            return
        if await asyncio.to_thread(lambda: incumbent.is_withheld):
            self.forget(incumbent.exchange_id)
            self._count(incumbent.request.route, "withheld")
            return
        task = asyncio.create_task(
            self._score(
                ScoreTask(
                    exchange_id=incumbent.exchange_id,
                    num_choices=max(1, len(incumbent.answer.choices)),
                    shadow_id=shadow.exchange_id,
                    model=incumbent.request.route,
                    salt=incumbent.request.salt,
                )
            )
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Drop what waits; what is scored is in the spool when this returns."""
        tasks = [self._running, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        """Keep the process running; it is started again whenever it ends."""
        await self._is_wanted.wait()
        while True:
            try:
                async with spawned(work, self._plan, {}) as self._channel:
                    await self._channel.run()
                logger.warning("the process that scores answers has ended; it is started again")
            except OSError as error:
                logger.warning("the process that scores answers cannot be started: %s", error)
            self._channel = None
            await asyncio.sleep(START_AGAIN_SECONDS)

    async def _score(self, task: ScoreTask) -> None:
        outcome = "failed"
        try:
            outcome = await self._outcome(task)
        except GatewayError as error:
            logger.warning("an answer was not scored: %s", error)
        finally:
            self.forget(task.exchange_id)
        self._count(task.model, outcome)

    async def _outcome(self, task: ScoreTask) -> str:
        """What became of a score, in a word.

        Raises:
            WorkerLostError: If the process ends meanwhile.
        """
        unfit: str | None = await self._ask("find", task)
        if unfit is not None:
            return unfit
        try:
            async with asyncio.timeout(TURN_SECONDS) as patience, self.turns.alone():
                patience.reschedule(None)
                member = self._candidate.pool.take() if self.may_ask else None
                if member is None:
                    return "skipped"
                try:
                    scored: Scored = await self._ask("score", (task, member.url))
                finally:
                    self._candidate.pool.release(member, None)
        except TimeoutError:  # shadow requests go on and on
            return "skipped"
        self._num_failures = 0 if scored.outcome == "scored" else self._num_failures + 1
        if self._num_failures == MAX_FAILURES:
            logger.warning("%s fails to score answers; it is asked no more", self._candidate.name)
        if scored.kl_nats is not None:
            self._metrics.kl.labels(task.model, self._candidate.name).observe(scored.kl_nats)
        return scored.outcome

    async def _ask(self, kind: str, carried: object) -> Any:  # noqa: ANN401  as the kind says
        if self._channel is None:
            raise WorkerLostError("the process that scores answers has ended")
        return await self._channel.ask(kind, carried)

    def _count(self, route: str, outcome: str) -> None:
        self._metrics.scores.labels(route, self._candidate.name, outcome).inc()
