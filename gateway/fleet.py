"""The engines behind deployments: those this gateway starts, and those that run elsewhere."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from capture.config import CaptureConfig
from capture.engine import Engine, EngineSpec, free_port
from capture.revision import model_revision
from gateway.config import RouteConfig
from gateway.health import PoolConfig
from gateway.pool import Pool
from gateway.prober import probing
from gateway.routing import Deployment
from gateway.supervisor import Health, supervise

OnHealth = Callable[[str, Health], None]
REPLICA = "{replica}"


@dataclass(slots=True)
class _Running:
    """What runs for one deployment."""

    route: str
    engines: list[Engine] = field(default_factory=list)
    pool: Pool | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Fleet:
    """Starts, watches and stops engines; blocking work happens in threads.

    Attributes:
        on_health: Called with a deployment's name when one of its engines has ended, or serves
            again.
    """

    def __init__(self, run_dir: Path, capture: CaptureConfig) -> None:
        self.on_health: OnHealth = lambda _, __: None
        self._run_dir = run_dir
        self._capture = capture
        self._running: dict[str, _Running] = {}  # by deployment

    async def start(
        self, name: str, route: str, model: Path, config: RouteConfig, *, is_candidate: bool
    ) -> Deployment:
        """Start a deployment's engines, return once each has answered a real generation.

        Each is started again whenever it ends, until ``stop``. On a route with capture ``full``
        its engines have the tap; of a candidate it records shadow requests only, since what is
        learned from the log are the teacher's answers.

        Raises:
            EngineError: If one does not start; with the end of its log. Nothing is left running.
        """
        running = self._running[name] = _Running(route)
        has_tap = config.capture == "full"
        for replica in range(config.engine.replicas):
            spec = self._spec(name, route, model, config, replica=replica, capture=has_tap)
            running.engines.append(Engine(spec, free_port()))
        try:
            async with asyncio.TaskGroup() as group:
                for engine in running.engines:
                    group.create_task(_start(engine, config.engine.start_timeout_seconds))
            revision = await asyncio.to_thread(model_revision, model)
        except BaseException as error:
            await asyncio.shield(self.stop(name))
            if isinstance(error, ExceptionGroup):
                raise error.exceptions[0] from error
            raise
        pool = self._attend(running, [engine.url for engine in running.engines], config.pool)
        for engine in running.engines:
            told = partial(self._tell, name, pool, engine.url)
            watching = supervise(engine, config.engine.start_timeout_seconds, told)
            running.tasks.append(asyncio.create_task(watching))
        recorded = has_tap and not is_candidate
        return Deployment(name, pool, model.name, revision, recorded, has_tap)

    def attach(self, name: str, route: str, config: RouteConfig, *, capture: bool) -> Deployment:
        """Use engines that run elsewhere; they serve once they have answered a generation."""
        running = self._running[name] = _Running(route)
        pool = self._attend(running, config.urls, config.pool, is_proven=False)
        return Deployment(name, pool, route, None, capture)

    def _attend(
        self,
        running: _Running,
        urls: Sequence[str],
        config: PoolConfig,
        *,
        is_proven: bool = True,
    ) -> Pool:
        """Make a pool of engines whose health is looked after."""
        pool = running.pool = Pool(urls, config, "serving" if is_proven else "ejected")
        running.tasks.append(asyncio.create_task(probing(pool, running.route)))
        return pool

    def _spec(
        self,
        name: str,
        route: str,
        model: Path,
        config: RouteConfig,
        *,
        replica: int,
        capture: bool,
    ) -> EngineSpec:
        log = f"{name}.log" if not replica else f"{name}-{replica}.log"
        env = config.engine.env.items()
        return EngineSpec(
            model=model,
            served_name=route,
            log_path=self._run_dir / "engines" / log,
            args=config.engine.args,
            env={key: value.replace(REPLICA, str(replica)) for key, value in env},
            capture=self._capture if capture else None,
        )

    def _tell(self, name: str, pool: Pool, url: str, health: Health) -> None:
        pool.set_up(url, is_up=health == "up")
        self.on_health(name, health)

    async def stop(self, name: str) -> None:
        """End what runs for a deployment, if anything does."""
        running = self._running.pop(name, None)
        if running is None:
            return
        for task in running.tasks:
            task.cancel()
        await asyncio.gather(*(asyncio.to_thread(engine.stop) for engine in running.engines))

    async def stop_all(self) -> None:
        """End every engine."""
        await asyncio.gather(*(self.stop(name) for name in list(self._running)))

    def names(self, route: str) -> list[str]:
        """Deployments of a route that are kept."""
        return [name for name, running in self._running.items() if running.route == route]

    def pools(self) -> Mapping[str, Pool]:
        """The pool of each deployment that is kept."""
        running = self._running.items()
        return {name: kept.pool for name, kept in running if kept.pool is not None}


async def _start(engine: Engine, timeout_seconds: float) -> None:
    await asyncio.to_thread(engine.launch)
    await asyncio.to_thread(engine.wait_ready, timeout_seconds)
