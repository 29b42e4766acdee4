"""The engines this gateway started: one per deployment, each with a log file of its own."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from capture.config import CaptureConfig
from capture.engine import Engine, EngineSpec, free_port
from capture.revision import model_revision
from gateway.config import EngineConfig
from gateway.routing import Deployment
from gateway.supervisor import Health, supervise

OnHealth = Callable[[str, Health], None]


class Fleet:
    """Starts, watches and stops engines; blocking work happens in threads.

    Attributes:
        on_health: Called with a deployment's name whenever its engine's health changes.
    """

    def __init__(self, run_dir: Path, capture: CaptureConfig) -> None:
        self.on_health: OnHealth = lambda _, __: None
        self._run_dir = run_dir
        self._capture = capture
        self._engines: dict[str, Engine] = {}  # by deployment
        self._watching: dict[str, asyncio.Task[None]] = {}

    async def start(
        self, name: str, route: str, model: Path, config: EngineConfig, *, capture: bool
    ) -> Deployment:
        """Start an engine, return once it has answered a real generation, and keep it running.

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
        engine = self._engines[name] = Engine(spec, free_port())
        try:
            await asyncio.to_thread(engine.launch)
            await asyncio.to_thread(engine.wait_ready, config.start_timeout_seconds)
            revision = await asyncio.to_thread(model_revision, model)
        except BaseException:
            await asyncio.shield(self.stop(name))
            raise
        self.on_health(name, "up")
        told = partial(self.on_health, name)
        watching = supervise(engine, config.start_timeout_seconds, told)
        self._watching[name] = asyncio.create_task(watching)
        return Deployment(name, engine.url, model.name, revision, capture)

    async def stop(self, name: str) -> None:
        """End one engine, if it is ours."""
        watching = self._watching.pop(name, None)
        if watching is not None:
            watching.cancel()
        engine = self._engines.pop(name, None)
        if engine is not None:
            await asyncio.to_thread(engine.stop)
            self.on_health(name, "gone")

    async def stop_all(self) -> None:
        """End every engine."""
        await asyncio.gather(*(self.stop(name) for name in list(self._engines)))

    def names(self, route: str) -> list[str]:
        """Deployments of a route that run here."""
        engines = self._engines.items()
        return [name for name, engine in engines if engine.spec.served_name == route]
