"""A deployment's engines: each request goes to the one that has least under way.

While none can take it a request waits its turn, for a bounded time and among a bounded number,
so that an engine's restart is a pause and not a burst of errors.
"""

import asyncio
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf

from gateway.errors import NotReadyError, OverloadedError
from gateway.health import Member, PoolConfig, RetryBudget, State, Verdict


@dataclass(slots=True)
class PoolCounts:
    """What has happened to a pool.

    Attributes:
        ejections: Engines that were taken out of service for their failures.
        retries: Requests that were tried again.
    """

    ejections: int = 0
    retries: int = 0


class Pool:
    """Engines behind one deployment; used from one event loop.

    Attributes:
        config: How they share requests.
        members: The engines.
        counts: What has happened.
    """

    def __init__(
        self, urls: Sequence[str], config: PoolConfig | None = None, state: State = "serving"
    ) -> None:
        """Begin with engines that serve, or that have yet to prove that they do.

        Args:
            urls: Their base addresses.
            config: How they share requests.
            state: Of each; ``ejected`` ones get requests once they have generated a token.
        """
        now = time.monotonic()
        self.config = config or PoolConfig()
        self.members = tuple(Member(url, state, heard_at=now) for url in urls)
        self.counts = PoolCounts()
        self._budget = RetryBudget(self.config.retry_share)
        self._waiting: deque[asyncio.Future[Member]] = deque()
        self._num_taken = 0
        self._is_closed = False

    @property
    def is_serving(self) -> bool:
        """Whether any engine serves."""
        return any(member.state == "serving" for member in self.members)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for an engine."""
        return len(self._waiting)

    async def acquire(self, tried: Collection[Member] = ()) -> Member:
        """Give the engine that a request is to go to; ``release`` it when that has ended.

        Args:
            tried: Engines that have failed it before, taken only if no other serves.

        Raises:
            NotReadyError: If none serves in time, or too many wait already.
            OverloadedError: If all that serve are busy for so long.
        """
        if not tried:
            self._budget.earn()
        member = None if self._waiting else self.take(tried)
        return await self._wait() if member is None else member

    def take(self, tried: Collection[Member] = ()) -> Member | None:
        """The engine to use now, if any can take a request."""
        most = self.config.max_outstanding
        free = [
            member
            for member in self.members
            if member.state == "serving" and (most is None or member.outstanding < most)
        ]
        if not free:
            return None
        best = min(free, key=lambda member: (member in tried, member.outstanding, member.order))
        self._num_taken += 1
        best.outstanding += 1
        best.order = self._num_taken
        return best

    def release(self, member: Member, verdict: Verdict | None) -> None:
        """Take an engine back.

        Args:
            member: What ``acquire`` or ``take`` gave.
            verdict: How it did; None if it could not show that.
        """
        member.outstanding -= 1
        now = time.monotonic()
        if verdict == "served":
            member.serve(now)
        elif verdict is not None:
            self.counts.ejections += member.fail(verdict, now, self.config)
        self._hand_out()

    def may_retry(self, tried: Sequence[Member]) -> bool:
        """Take a retry from the budget for a request that failed on some engines.

        Not if the only engines that serve are those: they would get the same load again.
        """
        serving = [member for member in self.members if member.state == "serving"]
        is_pointless = bool(serving) and all(member in tried for member in serving)
        if is_pointless or len(tried) > self.config.retries or not self._budget.spend():
            return False
        self.counts.retries += 1
        return True

    def due(self) -> list[Member]:
        """Engines that are to be asked for a token now; tell ``probed`` how each did."""
        now = time.monotonic()
        due = [member for member in self.members if member.is_due(now, self.config)]
        for member in due:
            member.is_probed = True
        return due

    def probed(self, member: Member, *, is_well: bool) -> None:
        """Take note of how a probe ended."""
        now = time.monotonic()
        self.counts.ejections += member.probed(now, self.config, is_well=is_well)
        self._hand_out()

    def set_up(self, url: str, *, is_up: bool) -> None:
        """Take an engine out of service whose process has ended, or back once it generates."""
        for member in self.members:
            if member.url == url:
                member.state = "serving" if is_up else "down"
                member.failures = member.ejections = 0
                member.heard_at = time.monotonic()
        self._hand_out()

    def set_aside(self) -> None:
        """Take every engine out of service, until ``set_up`` or ``doubt``."""
        for member in self.members:
            member.state = "down"

    def doubt(self) -> None:
        """Let every engine prove by a token that it serves, before it gets requests."""
        for member in self.members:
            member.state, member.probe_at = "ejected", -inf
            member.failures = member.ejections = 0

    def close(self) -> None:
        """Serve nobody from now on: who waits, or comes later, is refused at once."""
        self._is_closed = True
        self.set_aside()
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(self._unavailable("has been ended"))

    def _hand_out(self) -> None:
        """Give free engines to those that wait, in their order."""
        while self._waiting:
            if self._waiting[0].done():  # who waited has left
                self._waiting.popleft()
            elif (member := self.take()) is not None:
                self._waiting.popleft().set_result(member)
            else:
                return

    async def _wait(self) -> Member:
        if self._is_closed:
            raise self._unavailable("has been ended")
        if len(self._waiting) >= self.config.queue:
            raise self._unavailable("too many requests wait for it already")
        turn: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self.config.queue_seconds):
                return await turn
        except BaseException as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled():
                self.release(turn.result(), None)
            if isinstance(error, TimeoutError):
                raise self._unavailable("the wait for it was in vain") from error
            raise

    def _unavailable(self, why: str) -> NotReadyError:
        if self.is_serving:
            return OverloadedError(f"the engine is busy and {why}; retry in a moment")
        return NotReadyError(f"the engine does not serve at the moment and {why}; retry later")
