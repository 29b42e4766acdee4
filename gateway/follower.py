"""Looks, again and again, at what other gateways have written into a shared state store."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from capture.errors import EngineError
from gateway.errors import RolloutError, StateStoreError
from quant.bundle import BundleError

LOOK_SECONDS = 1.0
AGAIN_SECONDS = 30.0  # after an engine or a bundle failed, which takes a while
logger = logging.getLogger(__name__)


async def following(routes: Iterable[str], follow: Callable[[str], Awaitable[None]]) -> None:
    """Bring each route into step until cancelled; none waits for another.

    Args:
        routes: Their names.
        follow: Takes over what the store says of a route.
    """
    await asyncio.gather(*(_following(route, follow) for route in routes))


async def _following(route: str, follow: Callable[[str], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            await follow(route)
        except (StateStoreError, RolloutError, BundleError, EngineError) as error:
            logger.error("route %s is not in step with the state store: %s", route, error)  # noqa: TRY400
            if not isinstance(error, StateStoreError):
                await asyncio.sleep(AGAIN_SECONDS)
