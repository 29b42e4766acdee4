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
from typing import Annotated

import typer
import uvloop

from capture.redaction import Redactor
from gateway.admin import create_admin_app
from gateway.app import create_app
from gateway.committer import committing
from gateway.config import GatewayConfig, check_folders
from gateway.driver import RolloutDriver
from gateway.handover import Predecessor, listening_at, waiting
from gateway.holdings import opened_fleet, opened_gate, opened_spool, opened_upstream, opened_wire
from gateway.keeper import Keeper
from gateway.listener import Listener, bound, listening
from gateway.metrics import Metrics
from gateway.observers import in_turn, opened_observers
from gateway.relay import Serving
from gateway.reload import Reloader, Settings
from gateway.routing import RouteTable
from gateway.secret_files import admin_key, make_folder
from gateway.state import StateStore

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
logger = logging.getLogger("gateway")
PROBE_SECONDS = 10.0
LOOK_SECONDS = 0.05
LINGER_SECONDS = 2.0  # clients use a connection again within that time, or have gone


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
        uvloop.run(run(settings, config, pepper, take_over=take_over))


async def run(
    settings: Settings, path: Path, pepper: str | None = None, *, take_over: bool = False
) -> None:
    """Bring everything up, serve, and take everything down in the order that loses nothing."""
    config, captured = settings.gateway, settings.capture
    ending = Ending.installed()
    predecessor = Predecessor.find(config.run_dir) if take_over else None
    async with (
        committing(path, config.run_dir),
        opened_spool(captured) as spool,
        opened_wire(config, captured) as wire,
        opened_upstream() as upstream,
        opened_fleet(config, captured) as fleet,
        opened_gate(config, pepper) as gate,
        opened_observers(config) as observers,
    ):
        metrics = Metrics.create(captured.spool, fleet.pools)
        keeper = Keeper(
            spool,
            wait_seconds=captured.wait_seconds,
            overflow=captured.overflow,
            on_late=metrics.count_late,
        )
        given = (config, RouteTable({}), upstream, spool, metrics.begin, metrics.observe, keeper)
        refused = in_turn(metrics.refuse, *observers.refused)
        serving = Serving(*given, Redactor(captured.redact), wire, refused, gate)
        driver = RolloutDriver(serving, fleet, StateStore(config.state_store), metrics)
        serving.on_begun = in_turn(driver.on_begun, *observers.begun)
        serving.on_ended = in_turn(driver.on_ended, *observers.ended)
        fleet.on_health = driver.on_health
        observers.reload.append(Reloader(path, settings, serving).reload)
        on_signal(signal.SIGHUP, observers.on_reload)
        admin = create_admin_app(driver, admin_key(config.run_dir))
        if predecessor is not None and not await ending.unless_asked(answering(driver, serving)):
            return
        doors = opened_doors(config, predecessor)
        async with (
            waiting(config.run_dir, doors, ending.ask),
            listening(
                create_app(serving, metrics),
                doors[0],
                max_head_bytes=config.max_header_bytes,
                request_seconds=config.request_timeout_seconds,
                linger_seconds=LINGER_SECONDS,
            ) as for_apps,
            listening(admin, doors[1]) as for_operators,
        ):
            ending.listeners = (for_apps, for_operators)
            # What is here now stays: a collection that looks through all of it takes 50 ms.
            gc.freeze()
            await until_ended(driver, ending, predecessor)


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
        await driver.close()


@dataclass
class Ending:
    """The wish to end: once lets the requests under way finish, twice cuts them off."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    listeners: Sequence[Listener] = ()

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
