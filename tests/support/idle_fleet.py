"""A fleet that starts nothing, and tells what it would have done."""

import asyncio
from pathlib import Path

from capture.config import CaptureConfig
from capture.errors import EngineError
from gateway.config import RouteConfig
from gateway.fleet import Fleet
from gateway.pool import Pool
from gateway.routing import Deployment

NOBODY = "http://127.0.0.1:9"


class IdleFleet(Fleet):
    """Engines in name only.

    Attributes:
        kept: Deployments that have not been stopped.
        up: Those of them whose engines would answer.
        may_start: Engines wait for it before they are up.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, CaptureConfig(log=folder / "log", spool=folder / "taps"))
        self.kept: list[str] = []
        self.up: set[str] = set()
        self.may_start = asyncio.Event()
        self.may_start.set()

    def put(self, name: str) -> Deployment:
        """Have a deployment whose engines are up."""
        self.up.add(name)
        return self._kept(name)

    def _kept(self, name: str) -> Deployment:
        self.kept.append(name)
        return Deployment(name, Pool((NOBODY,)), name, None, capture=False)

    async def place(
        self, name: str, route: str, model: Path, config: RouteConfig, *, is_candidate: bool
    ) -> Deployment:
        """Make a deployment."""
        del route, model, config, is_candidate
        return self._kept(name)

    def attach(self, name: str, route: str, config: RouteConfig, *, capture: bool) -> Deployment:
        """Make a deployment of engines that run elsewhere."""
        del route, config, capture
        return self.put(name)

    async def bring_up(self, name: str) -> None:
        """Let its engines be up."""
        await self.may_start.wait()
        if name not in self.kept:
            raise EngineError(f"engines of {name} have been stopped")
        self.up.add(name)

    async def set_aside(self, name: str) -> None:
        """Let its engines be down."""
        self.up.discard(name)

    async def check_makes_room(self, name: str) -> None:
        """Every one does."""

    async def stop(self, name: str) -> None:
        """Forget a deployment."""
        self.up.discard(name)
        if name in self.kept:
            self.kept.remove(name)

    def names(self, route: str) -> list[str]:
        """All of them: there is one route."""
        del route
        return list(self.kept)
