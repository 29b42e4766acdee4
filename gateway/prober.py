"""Is an engine alive? Only a real generation says so."""

import asyncio
import logging

import httpx

from gateway.health import Member
from gateway.pool import Pool

LOOK_SECONDS = 0.1
SERVER_ERROR = 500
logger = logging.getLogger(__name__)


async def probing(pool: Pool, served_name: str) -> None:
    """Ask the engines of a pool that are due for one token each, until cancelled.

    An engine that refuses the request (it may serve embeddings only) is alive too.

    Args:
        pool: Says who is due.
        served_name: Model name that the engines know.
    """
    seconds = pool.config.probe_timeout_seconds
    body = {"model": served_name, "prompt": "a", "max_tokens": 1}
    async with (
        httpx.AsyncClient(timeout=seconds, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):

        async def probe(member: Member) -> None:
            try:
                async with asyncio.timeout(seconds):
                    answer = await client.post(member.url + "/v1/completions", json=body)
                is_well, why = answer.status_code < SERVER_ERROR, f"status {answer.status_code}"
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
                is_well, why = False, f"{type(error).__name__} {error}".strip()
            was_serving = member.state == "serving"
            pool.probed(member, is_well=is_well)
            if was_serving and not is_well:
                logger.warning("engine %s is out of service: %s", member.url, why)
            if is_well and not was_serving:
                logger.info("engine %s is in service", member.url)

        while True:
            for member in pool.due():
                group.create_task(probe(member))
            await asyncio.sleep(LOOK_SECONDS)
