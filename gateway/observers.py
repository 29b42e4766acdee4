"""Who else is told of every exchange: the access log, and OpenTelemetry."""

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from capture.errors import ConfigError
from gateway.access_log import AccessLog
from gateway.config import GatewayConfig
from gateway.errors import GatewayError
from gateway.exchange import Exchange

Told = TypeVar("Told")


@dataclass(slots=True)
class Observers:
    """What to call.

    Attributes:
        begun: When an exchange goes to its engine.
        ended: When its client has been served.
        refused: When a request does not become one.
        reload: When the configuration is read again.
    """

    begun: list[Callable[[Exchange], None]] = field(default_factory=list)
    ended: list[Callable[[Exchange], None]] = field(default_factory=list)
    refused: list[Callable[[GatewayError], None]] = field(default_factory=list)
    reload: list[Callable[[], None]] = field(default_factory=list)

    def on_reload(self) -> None:
        """Call what is to be called then."""
        for call in self.reload:
            call()


@asynccontextmanager
async def opened_observers(config: GatewayConfig) -> AsyncIterator[Observers]:
    """Open what is configured; on the way out everything observed has been written or sent.

    Raises:
        ConfigError: If the access log cannot be written, or OpenTelemetry is not installed.
    """
    observers, closings = Observers(), list[Callable[[], None]]()
    if config.access_log is not None:
        try:
            access_log = AccessLog(config.access_log)
        except OSError as error:
            raise ConfigError(
                f"[gateway].access_log is {config.access_log}: {error.strerror}"
            ) from error
        observers.ended.append(access_log.write)
        observers.refused.append(access_log.refuse)
        observers.reload.append(access_log.reopen)
        closings.append(access_log.close)
    if config.tracing is not None:
        try:
            tracing = importlib.import_module("gateway.tracing").Tracing(config.tracing)
        except ImportError as error:
            raise ConfigError(
                f"[gateway].tracing needs OpenTelemetry ({error}); install retort-llm[otel]"
            ) from error
        observers.begun.append(tracing.begin)
        observers.ended.append(tracing.end)
        closings.append(tracing.close)
    try:
        yield observers
    finally:
        for close in closings:
            await asyncio.to_thread(close)


def in_turn(*calls: Callable[[Told], None]) -> Callable[[Told], None]:
    """One function that calls several."""
    if len(calls) == 1:
        return calls[0]

    def call(told: Told) -> None:
        for each in calls:
            each(told)

    return call
