"""``retort serve``: engines, listeners and committer, brought up and taken down together."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Protocol

import typer
import uvloop

from gateway.admin import create_admin_app
from gateway.app import create_app
from gateway.committer import committing
from gateway.config import GatewayConfig, check_folders
from gateway.driver import RolloutDriver
from gateway.gate import Gate
from gateway.handover import Predecessor, listening_at, waiting
from gateway.holdings import opened_fleet, opened_serving
from gateway.limits import Limiter
from gateway.listener import bound, for_apps, listening
from gateway.metrics import Metrics
from gateway.observers import in_turn, opened_observers
from gateway.reload import Reloader, Settings
from gateway.secret_files import admin_key, make_folder
from gateway.serving import Serving
from gateway.state import StateStore
from gateway.workers import Workers

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
logger = logging.getLogger("gateway")
PROBE_SECONDS = 10.0
LOOK_SECONDS = 0.05


@app.command()
def serve(
    config: Annotated[Path, typer.Option("-c", "--config", help="The configuration file.")] = Path(
        "retort.toml"
    ),
    pepper: Annotated[
        str | None,
        typer.Option(envvar="RETORT_KEY_PEPPER", help="Default: run_dir/key.pepper."),
    ] = None,
    *,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Relieve the gateway that serves, refusing nobody."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the connections.")] = 1,
) -> None:
    """Serve every route of the configuration until SIGINT or SIGTERM; SIGHUP reads it again.

    A second SIGINT or SIGTERM cuts off the requests that the first one lets finish.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = Settings.read(config)
    check_folders(settings.gateway)
    make_folder("[gateway].run_dir", settings.gateway.run_dir)
    make_folder("[capture].spool", settings.capture.spool)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run(settings, Start(config, pepper, take_over, workers)))


@dataclass(frozen=True, slots=True)
class Start:
    """How ``retort serve`` was called.

    Attributes:
        path: The configuration file.
        pepper: What keys are digested with; None for the one in the run folder.
        take_over: Whether a gateway that serves is to be relieved.
        workers: Processes that share the connections, this one among them.
    """

    path: Path
    pepper: str | None = None
    take_over: bool = False
    workers: int = 1


async def run(settings: Settings, start: Start) -> None:
    """Bring everything up, serve, and take everything down in the order that loses nothing."""
    config = settings.gateway
    ending = Ending.installed()
    predecessor = Predecessor.find(config.run_dir) if start.take_over else None
    gate = Gate(config.bounds, limiter=Limiter(config.quotas))
    async with (
        committing(start.path, config.run_dir),
        opened_fleet(config, settings.capture) as fleet,
        opened_observers(config) as observers,
    ):
        metrics = Metrics.create(settings.capture.spool, fleet.pools)
        async with opened_serving(settings, start.pepper, gate, metrics, observers) as serving:
            driver = RolloutDriver(serving, fleet, StateStore(config.state_store), metrics)
            serving.on_begun = in_turn(serving.on_begun, driver.on_begun)
            serving.on_ended = in_turn(serving.on_ended, driver.on_ended)
            fleet.on_health = driver.on_health
            workers = Workers(start.workers - 1, serving, metrics.registry)
            workers.on_ended = driver.runner.trials.learn
            driver.runner.on_changed = workers.publish
            driver.runner.under_way.drain_elsewhere = workers.drain
            observers.reload += [Reloader(start.path, settings, serving).reload, workers.reload]
            on_signal(signal.SIGHUP, observers.on_reload)
            is_next = predecessor is not None
            if is_next and not await ending.unless_asked(answering(driver, serving)):
                return
            doors = opened_doors(config, predecessor)
            async with (
                waiting(config.run_dir, doors, ending.ask),
                workers.running(start.path, settings, start.pepper, doors[0]),
                for_apps(create_app(serving, workers.exposition), doors[0], config) as apps,
                listening(create_admin_app(driver, admin_key(config.run_dir)), doors[1]) as admin,
            ):
                ending.listeners = (apps, admin, workers)
                # What is here now stays: a collection that looks through all of it takes 50 ms.
                gc.freeze()
                await until_ended(driver, ending, predecessor)
                workers.end()


async def answering(driver: RolloutDriver, serving: Serving) -> None:
    """Bring every route up and wait until each answers, though not for ever: one may be down."""
    await driver.bring_up()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PROBE_SECONDS):
            while serving.table.answering < serving.config.routes.keys():  # noqa: ASYNC110
                await asyncio.sleep(LOOK_SECONDS)


def opened_doors(config: GatewayConfig, predecessor: Predecessor | None) -> list[socket.socket]:
    """The sockets for apps and for operators: our predecessor's, where it has the same.

    Raises:
        PortTakenError: If an address cannot be bound.
        HandoverError: If the predecessor has ended meanwhile.
    """
    left = [] if predecessor is None else predecessor.hand_over()
    addresses = (config.listen, config.admin_listen)
    return [listening_at(address, left) or bound(address) for address in addresses]


async def until_ended(
    driver: RolloutDriver, ending: "Ending", predecessor: Predecessor | None
) -> None:
    """Start what does not serve yet, and serve until we are asked to end.

    Raises:
        EngineError: If an engine does not start.
    """

    async def start() -> None:
        if predecessor is not None:
            await predecessor.until_ended()
        await driver.bring_up()
        logger.info("ready")
        await driver.go_on()

    try:
        if await ending.unless_asked(start()):
            await ending.asked.wait()
        logger.info("ending")
    finally:
        await driver.runner.close()


class Closing(Protocol):
    """What lets its requests finish when it ends, unless it is told to hang up."""

    def hang_up(self) -> None:
        """Cut every connection."""


@dataclass
class Ending:
    """The wish to end: once lets the requests under way finish, twice cuts them off."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    listeners: Sequence[Closing] = ()

    @classmethod
    def installed(cls) -> "Ending":
        """Listen to SIGINT and SIGTERM."""
        ending = cls()
        for number in (signal.SIGINT, signal.SIGTERM):
            on_signal(number, ending.ask)
        return ending

    async def unless_asked(self, work: Coroutine[None, None, None]) -> bool:
        """Do something, given up if we are asked to end meanwhile; whether it was done."""
        doing = asyncio.create_task(work)
        asking = asyncio.create_task(self.asked.wait())
        try:
            await asyncio.wait({doing, asking}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
            return doing.done()
        finally:
            doing.cancel()
            asking.cancel()
            await asyncio.gather(doing, asking, return_exceptions=True)

    def ask(self) -> None:
        """Ask to end."""
        if self.asked.is_set():
            for listener in self.listeners:
                listener.hang_up()
        self.asked.set()


def on_signal(number: signal.Signals, react: Callable[[], None]) -> None:
    """Call something from the running event loop whenever a signal comes."""
    asyncio.get_running_loop().add_signal_handler(number, react)
