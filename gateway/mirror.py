"""Shadow traffic: the candidate answers copies of real requests, unseen and out of the way.

Own queue, own workers, own connections. A request that finds no room in the queue is skipped and
counted, and so is one while the log has little room: clients' rows come first. An answer that is
far longer than the incumbent's is cut off. Nothing here can slow or fail a client's answer.
"""

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass
from typing import Protocol

from capture.writer import Spool
from gateway.body import forwarded_body
from gateway.errors import GatewayError, NotReadyError
from gateway.exchange import Exchange
from gateway.metrics import Metrics
from gateway.moments import Moments
from gateway.pair import Pair
from gateway.routing import Deployment
from gateway.scorer import Scorer
from gateway.turns import Turns
from gateway.upstream import Upstream

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
JSON_HEADERS = {"content-type": "application/json"}
SHORT_ANSWER_BYTES = 1024 * 1024  # is never too long
LONGER = 8  # times the incumbent's answer, beyond that


class OnPair(Protocol):
    """Compares an exchange with its shadow, which may have failed."""

    def __call__(self, incumbent: Exchange, shadow: Exchange, *, is_spaced: bool) -> Pair:
        """Compare; ``is_spaced`` says whether it stands for the moment in which it was asked."""


@dataclass(frozen=True, slots=True)
class MirrorLimits:
    """How much shadow traffic there may be.

    Attributes:
        concurrency: Requests under way at once.
        queue_bytes: Requests that wait, with the incumbent's answers.
        seconds: Longest time for one answer.
    """

    concurrency: int
    queue_bytes: int
    seconds: float = 60.0


class Mirror:
    """Asks one candidate what it would have said.

    Attributes:
        scorer: Has it score what was said instead, if anybody wants that.
    """

    def __init__(
        self,
        candidate: Deployment,
        spool: Spool[Exchange],
        metrics: Metrics,
        limits: MirrorLimits,
        scorer: Scorer | None = None,
    ) -> None:
        self.scorer = scorer
        self._candidate = candidate
        self._spool = spool
        self._metrics = metrics.shadow
        self._observe = metrics.observe
        self._limits = limits
        self._turns = Turns() if scorer is None else scorer.turns
        self._queue: asyncio.Queue[tuple[Exchange, OnPair]] = asyncio.Queue()
        self._waiting_bytes = 0
        self._moments = Moments()
        self._upstream = Upstream.create()
        self._workers = [asyncio.create_task(self._work()) for _ in range(limits.concurrency)]

    def offer(self, incumbent: Exchange, on_pair: OnPair) -> None:
        """Queue a copy of an ended exchange, or skip it when there is no room."""
        is_full = self._waiting_bytes + incumbent.num_bytes > self._limits.queue_bytes
        if is_full or self._spool.is_filling:
            self._metrics.mirrored.labels(incumbent.request.route, "skipped").inc()
            return
        self._waiting_bytes += incumbent.num_bytes
        self._queue.put_nowait((incumbent, on_pair))
        if self.scorer is not None:
            self.scorer.expect(incumbent)

    async def close(self) -> None:
        """Drop what waits and stop."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if self.scorer is not None:
            await self.scorer.close()
        await self._upstream.close()

    async def _work(self) -> None:
        while True:
            incumbent, on_pair = await self._queue.get()
            self._waiting_bytes -= incumbent.num_bytes
            try:
                async with self._turns.beside():
                    is_spaced = self._moments.begins(time.monotonic())
                    shadow = await self._ask(incumbent)
                self._metrics.mirrored.labels(incumbent.request.route, shadow.status).inc()
                where = (incumbent.request.route, self._candidate.name)
                pair = on_pair(incumbent, shadow, is_spaced=is_spaced)
                self._metrics.pairs.labels(*where, pair.outcome).inc()
                if self.scorer is not None:
                    await self.scorer.offer(incumbent, shadow)
            except Exception:  # the border: a shadow must never hurt anybody
                logger.exception("shadow request failed")
                self._metrics.mirrored.labels(incumbent.request.route, "error").inc()
                if self.scorer is not None:
                    self.scorer.forget(incumbent.exchange_id)

    async def _ask(self, incumbent: Exchange) -> Exchange:
        """Send the client's own body to the candidate and record its answer beside the pair."""
        self._spool.account.start()
        is_recorded = self._candidate.has_tap and incumbent.keeping.allows_capture
        shadow = Exchange(
            *(uuid.uuid4().hex, incumbent.request, self._candidate, "shadow"),
            capture="tap" if is_recorded else "off",
            pair_id=incumbent.exchange_id,
            keeping=incumbent.keeping,
        )
        pool = self._candidate.pool
        member = pool.take()
        try:
            if member is None:
                raise NotReadyError("the candidate does not serve")
            async with asyncio.timeout(self._limits.seconds):
                await self._receive(shadow, member.url, LONGER * incumbent.num_bytes)
        except GatewayError as error:
            shadow.error_type = error.code
        except TimeoutError:
            shadow.error_type = "timeout"
        except asyncio.CancelledError:
            shadow.aborted = True
            raise
        finally:
            if member is not None:
                pool.release(member, None)  # the guards judge it, from the evidence
            shadow.ended = time.monotonic()
            self._spool.offer(shadow, shadow.num_bytes)
            self._observe(shadow)
        return shadow

    async def _receive(self, shadow: Exchange, url: str, long_bytes: int) -> None:
        """Take an answer, or its beginning if it is far too long."""
        most_bytes = SHORT_ANSWER_BYTES + long_bytes
        body = forwarded_body(shadow)
        address = url + shadow.request.endpoint
        async with self._upstream.post(address, body, JSON_HEADERS, CONNECT_SECONDS) as response:
            shadow.http_status = response.status
            async for chunk in response.content.iter_any():
                shadow.take(chunk)
                if shadow.num_bytes > most_bytes:
                    shadow.error_type = "answer_too_long"
                    return
