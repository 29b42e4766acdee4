"""The engines this gateway started: one per deployment, each with a log file of its own."""

import asyncio
from pathlib import Path

from capture.config import CaptureConfig
from capture.engine import Engine, EngineSpec
from capture.revision import model_revision
from gateway.config import EngineConfig
from gateway.routing import Deployment


class Fleet:
    """Starts and stops engines; blocking work happens in threads."""

    def __init__(self, run_dir: Path, capture: CaptureConfig) -> None:
        self._run_dir = run_dir
        self._capture = capture
        self._engines: dict[str, Engine] = {}  # by deployment

    async def start(
        self, name: str, route: str, model: Path, config: EngineConfig, *, capture: bool
    ) -> Deployment:
        """Start an engine and return once it has answered a real generation.

        Raises:
            EngineError: If it does not start; with the end of its log. Nothing is left running.
        """
        spec = EngineSpec(
            model=model,
            served_name=route,
            log_path=self._run_dir / "engines" / f"{name}.log",
            args=config.args,
            env=config.env,
            capture=self._capture if capture else None,
        )
        engine = await asyncio.to_thread(Engine.start, spec)
        self._engines[name] = engine
        try:
            await asyncio.to_thread(engine.wait_ready, config.start_timeout_seconds)
        except BaseException:
            await asyncio.shield(self.stop(name))
            raise
        revision = await asyncio.to_thread(model_revision, model)
        return Deployment(name, engine.url, model.name, revision, capture)

    async def stop(self, name: str) -> None:
        """End one engine, if it is ours."""
        engine = self._engines.pop(name, None)
        if engine is not None:
            await asyncio.to_thread(engine.stop)

    async def stop_all(self) -> None:
        """End every engine."""
        await asyncio.gather(*(self.stop(name) for name in list(self._engines)))

    def names(self, route: str) -> list[str]:
        """Deployments of a route that run here."""
        engines = self._engines.items()
        return [name for name, engine in engines if engine.spec.served_name == route]
