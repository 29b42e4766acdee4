"""When an engine gets requests: ejected after failures, let in again by a real generation (pure).

Time is given by the caller, in monotonic seconds.
"""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

STEADY_SECONDS = 60.0  # an engine that has served for so long gets a fresh start
FIRST_PAUSE_SECONDS = 1.0
RETRY_BURST = 64.0  # about what an engine has under way when it ends

State = Literal["serving", "ejected", "down"]  # down: its process has ended
Verdict = Literal["served", "failed", "gone"]  # gone: nobody listens, or it broke off


class PoolConfig(BaseModel):
    """How a route's engines share its requests.

    Attributes:
        max_outstanding: Most requests under way at once in one engine; further ones wait.
        queue: Most requests that wait for an engine; further ones are refused.
        queue_seconds: Longest time that one waits.
        eject_after: Failures in a row after which an engine gets no requests until it has
            answered a generation of one token.
        eject_seconds: Longest pause between two such tries.
        probe_seconds: Silence after which an engine is asked for one token, to see it alive.
        probe_timeout_seconds: Longest time that it may take for that.
        retries: How often a request is tried again, if it failed before its first byte.
        retry_share: Retries per request in the long run, so that they cannot multiply the load
            that engines fail under.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_outstanding: Annotated[int, Field(ge=1)] | None = None
    queue: Annotated[int, Field(ge=0)] = 1024
    queue_seconds: Annotated[float, Field(gt=0)] = 120.0
    eject_after: Annotated[int, Field(ge=1)] = 5
    eject_seconds: Annotated[float, Field(gt=0)] = 30.0
    probe_seconds: Annotated[float, Field(gt=0)] = 30.0
    probe_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0)] = 2
    retry_share: Annotated[float, Field(ge=0, le=1)] = 0.2


@dataclass(slots=True, eq=False)
class Member:
    """One engine of a pool.

    Attributes:
        url: Base address.
        outstanding: Requests under way.
        failures: In a row.
        ejections: Since it last served steadily.
        heard_at: When it last gave a sign of life.
        probe_at: When it is to be asked for a token.
        is_probed: Whether it is being asked.
        order: When it was last given a request, counted in requests.
    """

    url: str
    state: State = "serving"
    outstanding: int = 0
    failures: int = 0
    ejections: int = 0
    heard_at: float = -inf
    probe_at: float = -inf
    is_probed: bool = False
    order: int = 0

    def serve(self, now: float) -> None:
        """Take note of a sign of life."""
        if now - self.probe_at > STEADY_SECONDS:
            self.ejections = 0
        self.failures, self.heard_at = 0, now

    def fail(self, verdict: Verdict, now: float, config: PoolConfig) -> bool:
        """Take note of a failure; whether the engine is ejected for it."""
        self.failures += 1
        if self.state != "serving":
            return False
        if verdict != "gone" and self.failures < config.eject_after:
            return False
        self._eject(now, config)
        return True

    def probed(self, now: float, config: PoolConfig, *, is_well: bool) -> bool:
        """Take note of how a probe ended; whether the engine is ejected for it."""
        self.is_probed = False
        was_serving = self.state == "serving"
        if self.state == "down":
            return False
        if is_well:
            self.state, self.probe_at = "serving", now
            self.serve(now)
            return False
        self._eject(now, config)
        return was_serving

    def is_due(self, now: float, config: PoolConfig) -> bool:
        """Whether it is to be asked for a token."""
        if self.is_probed or self.state == "down":
            return False
        if self.state == "ejected":
            return now >= self.probe_at
        return now - self.heard_at >= config.probe_seconds

    def _eject(self, now: float, config: PoolConfig) -> None:
        self.state = "ejected"
        self.probe_at = now + pause_seconds(self.ejections, config.eject_seconds)
        self.ejections += 1


def pause_seconds(ejections: int, longest: float) -> float:
    """How long to wait before the next probe: 0, 1, 2, 4, ... seconds."""
    if not ejections:
        return 0.0
    return float(min(longest, FIRST_PAUSE_SECONDS * 2 ** min(ejections - 1, 16)))


@dataclass(slots=True)
class RetryBudget:
    """Retries that may still be made."""

    share: float
    left: float = RETRY_BURST

    def earn(self) -> None:
        """Take note of a request."""
        self.left = min(RETRY_BURST, self.left + self.share)

    def spend(self) -> bool:
        """Take one retry; whether there was one."""
        if self.left < 1:
            return False
        self.left -= 1
        return True
