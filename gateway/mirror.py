"""Shadow traffic: the candidate answers copies of real requests, unseen and out of the way.

Own queue, own workers, own connections. A full queue skips a request and counts it; nothing here
can slow or fail a client's answer.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from capture.writer import Spool
from gateway.body import forwarded_body
from gateway.errors import GatewayError, NotReadyError
from gateway.exchange import Exchange
from gateway.metrics import Metrics
from gateway.routing import Deployment
from gateway.upstream import Upstream

logger = logging.getLogger(__name__)

OnPair = Callable[[Exchange, Exchange], None]
CONNECT_SECONDS = 5.0
JSON_HEADERS = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class MirrorLimits:
    """How much shadow traffic there may be.

    Attributes:
        concurrency: Requests under way at once.
        queue: Requests that wait.
        seconds: Longest time for one answer.
    """

    concurrency: int
    queue: int
    seconds: float = 60.0


class Mirror:
    """Asks one candidate what it would have said."""

    def __init__(
        self,
        candidate: Deployment,
        spool: Spool[Exchange],
        metrics: Metrics,
        limits: MirrorLimits,
    ) -> None:
        self._candidate = candidate
        self._spool = spool
        self._metrics = metrics
        self._limits = limits
        self._queue: asyncio.Queue[tuple[Exchange, OnPair]] = asyncio.Queue(limits.queue)
        self._upstream = Upstream.create()
        self._workers = [asyncio.create_task(self._work()) for _ in range(limits.concurrency)]

    def offer(self, incumbent: Exchange, on_pair: OnPair) -> None:
        """Queue a copy of an ended exchange, or skip it when there are too many.

        ``on_pair`` gets the exchange and its shadow, failed or not.
        """
        try:
            self._queue.put_nowait((incumbent, on_pair))
        except asyncio.QueueFull:
            self._metrics.mirrored.labels(incumbent.request.route, "skipped").inc()

    async def close(self) -> None:
        """Drop what waits and stop."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._upstream.close()

    async def _work(self) -> None:
        while True:
            incumbent, on_pair = await self._queue.get()
            try:
                shadow = await self._ask(incumbent)
                self._metrics.mirrored.labels(incumbent.request.route, shadow.status).inc()
                on_pair(incumbent, shadow)
            except Exception:  # the border: a shadow must never hurt anybody
                logger.exception("shadow request failed")
                self._metrics.mirrored.labels(incumbent.request.route, "error").inc()

    async def _ask(self, incumbent: Exchange) -> Exchange:
        """Send the client's own body to the candidate and record its answer beside the pair."""
        self._spool.account.start()
        shadow = Exchange(
            uuid.uuid4().hex,
            incumbent.request,
            self._candidate,
            "shadow",
            pair_id=incumbent.exchange_id,
            keeping=incumbent.keeping,
        )
        pool = self._candidate.pool
        member = pool.take()
        try:
            if member is None:
                raise NotReadyError("the candidate does not serve")
            url = member.url + shadow.request.endpoint
            body = forwarded_body(shadow)
            async with (
                asyncio.timeout(self._limits.seconds),
                self._upstream.post(url, body, JSON_HEADERS, CONNECT_SECONDS) as response,
            ):
                shadow.http_status = response.status
                async for chunk in response.content.iter_any():
                    shadow.take(chunk)
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
            self._metrics.observe(shadow)
        return shadow
