"""How long an engine may take, phase by phase, and who ends the wait."""

import asyncio
from math import inf
from types import TracebackType
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import UpstreamTimeoutError


class Timeouts(BaseModel):
    """Longest waits for an engine.

    Attributes:
        connect_seconds: For a connection.
        first_token_seconds: For the first bytes of a stream.
        between_tokens_seconds: Between two pieces of a stream.
        total_seconds: For a whole answer, streamed or not, the client's reading included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    connect_seconds: Annotated[float, Field(gt=0)] = 5.0
    first_token_seconds: Annotated[float, Field(gt=0)] = 300.0
    between_tokens_seconds: Annotated[float, Field(gt=0)] = 120.0
    total_seconds: Annotated[float, Field(gt=0)] = 1800.0


class Watch:
    """A context that ends with ``UpstreamTimeoutError`` when an engine is silent for too long.

    One timer per answer, which looks now and then, so that a piece of a stream costs nothing but
    a reading of the clock. While the client reads (``pause``) the engine is not to blame.
    """

    def __init__(self, timeouts: Timeouts, *, stream: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeouts = timeouts
        self._since: float | None = self._loop.time()
        self._total_at = self._since + timeouts.total_seconds
        self._phase = ("first_token_seconds", timeouts.first_token_seconds if stream else inf)
        self._expired = ""

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._timer = self._loop.call_later(self._next(), self._look)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._expired and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise UpstreamTimeoutError(f"the engine's answer took too long: {self._expired}")

    def pause(self) -> None:
        """Stop counting: a piece has come."""
        self._since = None

    def resume(self) -> None:
        """Wait for the next piece of a stream."""
        self._since = self._loop.time()
        self._phase = ("between_tokens_seconds", self._timeouts.between_tokens_seconds)

    def _next(self) -> float:
        """Seconds until the wait may be over, whatever comes meanwhile."""
        now, (_, seconds) = self._loop.time(), self._phase
        left = inf if self._since is None else self._since + seconds - now
        soonest = inf if seconds == inf else self._timeouts.between_tokens_seconds
        return max(0.0, min(self._total_at - now, left, soonest))

    def _look(self) -> None:
        now, (name, seconds) = self._loop.time(), self._phase
        if now >= self._total_at:
            self._expire("total_seconds", self._timeouts.total_seconds)
        elif self._since is not None and now - self._since >= seconds:
            self._expire(name, seconds)
        else:
            self._timer = self._loop.call_later(self._next(), self._look)

    def _expire(self, name: str, seconds: float) -> None:
        self._expired = f"{name} is {seconds:g}"
        if self._task is not None:
            self._task.cancel()
