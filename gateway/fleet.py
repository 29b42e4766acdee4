"""The engines behind deployments: those this gateway starts, and those that run elsewhere."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from capture.config import CaptureConfig
from capture.engine import Engine, EngineSpec, free_port
from capture.errors import EngineError
from capture.revision import model_revision
from gateway import sleep
from gateway.config import RouteConfig
from gateway.pool import Pool
from gateway.prober import probing
from gateway.routing import Deployment
from gateway.supervisor import Health, supervise

OnHealth = Callable[[str, Health], None]
REPLICA = "{replica}"
LOOK_SECONDS = 0.05
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    """What runs for one deployment.

    Attributes:
        engines: Ours; none where they run elsewhere.
        watching: What starts those again that end.
        is_asleep: Whether those that run have been put to sleep.
    """

    route: str
    config: RouteConfig
    pool: Pool
    probe: asyncio.Task[None]
    engines: list[Engine] = field(default_factory=list)
    watching: list[asyncio.Task[None]] = field(default_factory=list)
    is_asleep: bool = False

    def stop_watching(self) -> None:
        for task in self.watching:
            task.cancel()
        self.watching.clear()


class Fleet:
    """Starts, watches, sets aside and stops engines; blocking work happens in threads.

    Attributes:
        capture: Where and how much their taps write.
        on_health: Called with a deployment's name when one of its engines has ended, or serves
            again.
    """

    def __init__(self, run_dir: Path, capture: CaptureConfig) -> None:
        self.on_health: OnHealth = lambda _, __: None
        self._run_dir = run_dir
        self.capture = capture
        self._running: dict[str, _Running] = {}  # by deployment

    async def start(
        self, name: str, route: str, model: Path, config: RouteConfig, *, is_candidate: bool
    ) -> Deployment:
        """Start a deployment's engines, return once each has answered a real generation.

        Each is started again whenever it ends, until ``stop`` or ``set_aside``.

        Raises:
            EngineError: If one does not start; with the end of its log. Nothing is left running.
        """
        deployment = await self.place(name, route, model, config, is_candidate=is_candidate)
        try:
            await self.bring_up(name)
        except BaseException:
            await asyncio.shield(self.stop(name))
            raise
        return deployment

    async def place(
        self, name: str, route: str, model: Path, config: RouteConfig, *, is_candidate: bool
    ) -> Deployment:
        """Make a deployment whose engines are not started yet: ``bring_up`` does.

        On a route with capture ``full`` they have the tap; of a candidate it records shadow
        requests only, since what is learned from the log are the teacher's answers.
        """
        has_tap = config.capture == "full"
        specs = [
            self._spec(name, route, model, config, replica=replica)
            for replica in range(config.engine.replicas)
        ]
        engines = [Engine(spec, free_port()) for spec in specs]
        pool = Pool([engine.url for engine in engines], config.pool, "down")
        running = self._attend(name, route, config, pool)
        running.engines = engines
        try:
            revision = await asyncio.to_thread(model_revision, model)
        except BaseException:
            await asyncio.shield(self.stop(name))
            raise
        return Deployment(name, pool, model.name, revision, has_tap and not is_candidate, has_tap)

    def attach(self, name: str, route: str, config: RouteConfig, *, capture: bool) -> Deployment:
        """Use engines that run elsewhere; they serve once they have answered a generation."""
        pool = Pool(config.urls, config.pool, "ejected")
        self._attend(name, route, config, pool)
        return Deployment(name, pool, route, None, capture)

    def _attend(self, name: str, route: str, config: RouteConfig, pool: Pool) -> _Running:
        """Look after the health of a pool's engines."""
        probe = asyncio.create_task(probing(pool, route))
        running = self._running[name] = _Running(route, config, pool, probe)
        return running

    def _spec(
        self, name: str, route: str, model: Path, config: RouteConfig, *, replica: int
    ) -> EngineSpec:
        log = f"{name}.log" if not replica else f"{name}-{replica}.log"
        sleeps = config.engine.sleep_mode
        env = {**(sleep.ENV if sleeps else {}), **config.engine.env}
        return EngineSpec(
            model=model,
            served_name=route,
            log_path=self._run_dir / "engines" / log,
            args=(*(sleep.ARGS if sleeps else ()), *config.engine.args),
            env={key: value.replace(REPLICA, str(replica)) for key, value in env.items()},
            capture=self.capture if config.capture == "full" else None,
        )

    async def bring_up(self, name: str) -> None:
        """Start a deployment's engines, or wake those that sleep, until each has generated.

        Raises:
            EngineError: If one does not; others may run.
        """
        running = self._of(name)
        seconds = running.config.engine.start_timeout_seconds
        try:
            async with asyncio.TaskGroup() as group:
                for engine in running.engines:
                    group.create_task(_bring_up(engine, seconds, is_asleep=running.is_asleep))
                if not running.engines:
                    group.create_task(_wake(running.pool, seconds))
        except ExceptionGroup as error:
            raise error.exceptions[0] from error
        if self._of(name) is not running:
            raise EngineError(f"engines of {name} have been started anew meanwhile")
        running.is_asleep = False
        for engine in running.engines:
            running.pool.set_up(engine.url, is_up=True)
            told = partial(self._tell, name, running.pool, engine.url)
            running.watching.append(asyncio.create_task(supervise(engine, seconds, told)))

    def _of(self, name: str) -> _Running:
        """What runs for a deployment.

        Raises:
            EngineError: If it has been stopped.
        """
        if name not in self._running:
            raise EngineError(f"engines of {name} have been stopped")
        return self._running[name]

    async def check_makes_room(self, name: str) -> None:
        """See that a deployment's engines can be set aside; nothing is changed.

        Raises:
            RolloutError: If one runs elsewhere and has no sleep mode.
            EngineError: If the deployment has been stopped.
        """
        running = self._of(name)
        if not running.engines:
            await asyncio.gather(*map(sleep.check_sleeps, running.config.urls))

    async def set_aside(self, name: str) -> None:
        """Let a deployment's engines give up the memory they hold, until ``bring_up``.

        They are put to sleep where they can be, else ours are ended. It is given no requests any
        more, and what it still has under way is cut off.

        Raises:
            EngineError: If one that runs elsewhere does not fall asleep, or it has been stopped.
        """
        running = self._of(name)
        running.stop_watching()
        running.pool.set_aside()
        running.is_asleep = running.config.engine.sleep_mode or not running.engines
        if running.engines:
            making = [_make_room(engine, sleeps=running.is_asleep) for engine in running.engines]
        else:
            making = [sleep.put_to_sleep(url) for url in running.config.urls]
        await asyncio.gather(*making)

    def _tell(self, name: str, pool: Pool, url: str, health: Health) -> None:
        pool.set_up(url, is_up=health == "up")
        self.on_health(name, health)

    async def stop(self, name: str) -> None:
        """End what runs for a deployment, if anything does."""
        running = self._running.pop(name, None)
        if running is None:
            return
        running.stop_watching()
        running.probe.cancel()
        running.pool.close()
        await asyncio.gather(*(asyncio.to_thread(engine.stop) for engine in running.engines))

    async def stop_all(self) -> None:
        """End every engine."""
        await asyncio.gather(*(self.stop(name) for name in list(self._running)))

    def names(self, route: str) -> list[str]:
        """Deployments of a route that are kept."""
        return [name for name, running in self._running.items() if running.route == route]

    def pools(self) -> Mapping[str, Pool]:
        """The pool of each deployment that is kept."""
        return {name: kept.pool for name, kept in self._running.items()}


async def _bring_up(engine: Engine, timeout_seconds: float, *, is_asleep: bool) -> None:
    """Wake an engine that sleeps, start any other."""
    if is_asleep and engine.is_running:
        try:
            await sleep.wake_up(engine.url)
        except EngineError as error:
            logger.warning("%s; it is started again", error)
            await asyncio.to_thread(engine.launch)
    else:
        await asyncio.to_thread(engine.launch)
    await asyncio.to_thread(engine.wait_ready, timeout_seconds)


async def _wake(pool: Pool, timeout_seconds: float) -> None:
    """Wake engines that run elsewhere and wait until one of them generates."""
    await asyncio.gather(*(sleep.wake_up(member.url) for member in pool.members))
    pool.doubt()
    try:
        async with asyncio.timeout(timeout_seconds):
            while not pool.is_serving:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError as error:
        urls = ", ".join(member.url for member in pool.members)
        raise EngineError(f"no engine at {urls} generates after {timeout_seconds:.0f} s") from error


async def _make_room(engine: Engine, *, sleeps: bool) -> None:
    """Put an engine of ours to sleep; end it where that is not possible."""
    if sleeps and engine.is_running:
        try:
            await sleep.put_to_sleep(engine.url)
        except EngineError as error:
            logger.warning("%s; it is ended instead", error)
        else:
            return
    await asyncio.to_thread(engine.halt)
