"""vLLM's sleep mode: an engine gives its GPU's memory back, and takes it again within seconds.

At level 1 the weights go to the host's memory and the KV cache is dropped. vLLM has it on CUDA,
ROCm and XPU, where it was started with ``--enable-sleep-mode``; its endpoints are there only with
``VLLM_SERVER_DEV_MODE=1``. Elsewhere they would pause the engine and free nothing.

Source: vLLM 0.32.0, ``entrypoints/serve/dev/sleep``, ``Platform.is_sleep_mode_available``.
"""

import logging
from collections.abc import Mapping

import httpx
from pydantic import BaseModel, ValidationError

from capture.errors import EngineError
from gateway.errors import RolloutError

ARGS = ("--enable-sleep-mode",)
ENV: Mapping[str, str] = {"VLLM_SERVER_DEV_MODE": "1"}
SECONDS = 120.0
logger = logging.getLogger(__name__)


class _IsSleeping(BaseModel):
    """What ``GET /is_sleeping`` says."""

    is_sleeping: bool


async def check_sleeps(url: str) -> None:
    """See that an engine can be put to sleep; nothing is changed.

    Raises:
        RolloutError: If it cannot, or does not say so.
    """
    how = (
        f"start it with {' '.join(ARGS)} and VLLM_SERVER_DEV_MODE=1, or let the gateway start it "
        "(`model` instead of `url`)"
    )
    async with _client(url) as client:
        try:
            answer = await client.get("/server_info", params={"config_format": "json"})
            await is_sleeping(client)
        except (httpx.HTTPError, EngineError) as error:
            raise RolloutError(
                f"the engine at {url} has no sleep mode, so it cannot make room for another "
                f"({error}); {how}"
            ) from error
    if not _has_sleep_mode(answer):
        raise RolloutError(
            f"the engine at {url} would free no memory: it runs without {' '.join(ARGS)}; {how}"
        )


def _has_sleep_mode(answer: httpx.Response) -> bool:
    try:
        return bool(answer.json()["vllm_config"]["model_config"]["enable_sleep_mode"])
    except (ValueError, KeyError, TypeError):
        return False


async def put_to_sleep(url: str) -> None:
    """Put an engine to sleep, or leave it asleep; what it has under way is aborted.

    One that nobody listens at holds no memory either.

    Raises:
        EngineError: If it does not fall asleep.
    """
    async with _client(url) as client:
        try:
            await _post(client, "/sleep", {"level": "1"})
            if not await is_sleeping(client):
                raise EngineError(f"the engine at {url} was sent to sleep and did not")
        except httpx.ConnectError:
            logger.warning("nobody listens at %s; there is nothing to put to sleep", url)
        except httpx.HTTPError as error:
            raise EngineError(f"the engine at {url} does not fall asleep: {error!r}") from error


async def wake_up(url: str) -> None:
    """Wake an engine, if it sleeps; that it generates is for others to see.

    Raises:
        EngineError: If it cannot be reached or does not wake.
    """
    async with _client(url) as client:
        try:
            if await is_sleeping(client):
                await _post(client, "/wake_up", {})
            if await is_sleeping(client):
                raise EngineError(f"the engine at {url} was woken and sleeps on")
        except httpx.HTTPError as error:
            raise EngineError(f"the engine at {url} does not wake: {error!r}") from error


def _client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=SECONDS, trust_env=False)


async def _post(client: httpx.AsyncClient, path: str, params: Mapping[str, str]) -> None:
    answer = await client.post(path, params=params)
    if not answer.is_success:
        raise EngineError(f"{answer.url} answered {answer.status_code}: {answer.text[:200]}")


async def is_sleeping(client: httpx.AsyncClient, url: str = "") -> bool:
    """Ask the engine at a URL, or at the client's own.

    Raises:
        EngineError: If it has no sleep mode, or is none of vLLM's.
    """
    answer = await client.get(f"{url}/is_sleeping")
    try:
        return _IsSleeping.model_validate_json(answer.content).is_sleeping
    except ValidationError as error:
        raise EngineError(
            f"{answer.url} answered {answer.status_code} with something that is not vLLM's"
        ) from error
