"""The sleep mode of a fake vLLM, and a GPU with room for one model that is awake."""

import asyncio
import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


class Gpu:
    """A file that one process at a time can hold; whoever ends lets go of it."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_RDWR)

    def take(self) -> bool:
        """Take all of its memory; whether there was any."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def free(self) -> None:
        """Give its memory back."""
        fcntl.flock(self._file, fcntl.LOCK_UN)


@dataclass
class Sleep:
    """Whether an engine sleeps, and vLLM's endpoints for it.

    As in vLLM 0.32.0: the endpoints are there in its development mode; an engine that was started
    without sleep mode pauses when asked to sleep, and frees nothing.
    """

    has_endpoints: bool = False
    has_mode: bool = False
    gpu: Gpu | None = None
    awake: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.awake.set()

    @property
    def routes(self) -> Sequence[Route]:
        if not self.has_endpoints:
            return ()
        return (
            Route("/sleep", self.sleep, methods=["POST"]),
            Route("/wake_up", self.wake_up, methods=["POST"]),
            Route("/is_sleeping", self.is_sleeping),
            Route("/server_info", self.server_info),
        )

    async def sleep(self, request: Request) -> JSONResponse:
        level = int(request.query_params.get("level", "1"))
        self.awake.clear()
        if self.has_mode and self.gpu is not None:
            self.gpu.free()
        return JSONResponse({"status": "sleeping", "level": level})

    async def wake_up(self, _: Request) -> JSONResponse:
        if self.has_mode and self.gpu is not None and not self.gpu.take():
            return JSONResponse({"error": {"message": "CUDA out of memory"}}, 500)
        self.awake.set()
        return JSONResponse({"status": "awake", "tags": None})

    async def is_sleeping(self, _: Request) -> JSONResponse:
        return JSONResponse({"is_sleeping": not self.awake.is_set()})

    async def server_info(self, _: Request) -> JSONResponse:
        model = {"enable_sleep_mode": self.has_mode}
        return JSONResponse({"vllm_config": {"model_config": model}})
