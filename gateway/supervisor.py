"""An engine that has ended while it served is started again, for as long as it takes."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Literal

from capture.engine import Engine
from capture.errors import EngineError

LOOK_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 60.0
STEADY_SECONDS = 60.0  # an engine that has served for so long gets a fresh start
Health = Literal["up", "down"]
logger = logging.getLogger(__name__)


async def supervise(
    engine: Engine, start_timeout_seconds: float, on_health: Callable[[Health], None]
) -> None:
    """Watch an engine that serves until this is cancelled.

    Args:
        engine: Ready.
        start_timeout_seconds: Longest wait for its first generation after each start.
        on_health: Called when it has ended, and when it has answered a real generation again.
    """
    starts = 0
    while True:
        ready_at = time.monotonic()
        await _until_ended(engine)
        on_health("down")
        starts = 0 if time.monotonic() - ready_at > STEADY_SECONDS else starts
        reason: str | None = engine.explain("ended")
        while reason:
            logger.error("%s\nstarting it again in %.0f s", reason, pause_seconds(starts))
            await asyncio.sleep(pause_seconds(starts))
            starts += 1
            reason = await _start(engine, start_timeout_seconds)
        logger.info("engine for %s serves again", engine.spec.model)
        on_health("up")


async def _until_ended(engine: Engine) -> None:
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if not engine.is_running:
            return


def pause_seconds(starts: int) -> float:
    """How long to wait after so many starts that came to nothing: 0, 1, 3, 7, ... seconds."""
    return min(2.0 ** min(starts, 16) - 1, LONGEST_PAUSE_SECONDS)


async def _start(engine: Engine, timeout_seconds: float) -> str | None:
    """Start it and wait until it generates; says why if it does not."""
    try:
        await asyncio.to_thread(engine.launch)
        await asyncio.to_thread(engine.wait_ready, timeout_seconds)
    except EngineError as error:
        return str(error)
    return None
