"""``retort serve``: engines, listeners and committer, brought up and taken down together."""

import asyncio
import contextlib
import logging
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer

import capture.config
import gateway.config
from capture.config import CaptureConfig
from capture.redaction import Redactor
from capture.revision import tokenizer_hash
from capture.rows import encode_logits
from capture.writer import Spool, SpoolLimits
from gateway.admin import create_admin_app
from gateway.app import create_app
from gateway.committer import committing
from gateway.config import GatewayConfig
from gateway.driver import RolloutDriver
from gateway.exchange import Exchange, encode
from gateway.fleet import Fleet
from gateway.keeper import Keeper
from gateway.listener import listening
from gateway.metrics import Metrics
from gateway.relay import Serving
from gateway.routing import RouteTable
from gateway.state import StateStore
from gateway.upstream import Upstream
from gateway.wiring import Wire

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
logger = logging.getLogger("gateway")


@app.command()
def serve(
    config: Annotated[Path, typer.Option("-c", "--config", help="The configuration file.")] = Path(
        "retort.toml"
    ),
) -> None:
    """Serve every route of the configuration until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = gateway.config.load(config)
    captured = capture.config.load(config)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(settings, captured, config))


async def run(settings: GatewayConfig, captured: CaptureConfig, path: Path) -> None:
    """Bring everything up, serve, and take everything down in the order that loses nothing."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    captured.spool.mkdir(parents=True, exist_ok=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with (
        committing(path, settings.run_dir),
        opened_spool(captured) as spool,
        opened_wire(settings, captured) as wire,
        opened_upstream(settings) as upstream,
        opened_fleet(settings, captured) as fleet,
    ):
        metrics = Metrics.create(captured.spool)
        keeper = Keeper(
            spool,
            wait_seconds=captured.wait_seconds,
            overflow=captured.overflow,
            on_late=metrics.count_late,
        )
        given = (settings, RouteTable({}), upstream, spool, metrics.begin, metrics.observe, keeper)
        serving = Serving(*given, Redactor(captured.redact), wire)
        driver = RolloutDriver(serving, fleet, StateStore(settings.state_store), metrics)
        serving.on_begun, serving.on_ended = driver.on_begun, driver.on_ended
        admin = create_admin_app(driver, admin_key(settings.run_dir))
        async with (
            listening(create_app(serving, metrics), settings.listen),
            listening(admin, settings.admin_listen),
        ):
            starting = asyncio.create_task(driver.resume())
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                logger.info("ready on http://%s/v1", settings.listen)
                await stopping
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await driver.close()


@asynccontextmanager
async def opened_spool(captured: CaptureConfig) -> AsyncIterator[Spool[Exchange]]:
    """Open the exchange spool; on the way out everything taken is written."""
    spool = Spool(captured.spool, "exchanges", encode, limits=spool_limits(captured))
    try:
        yield spool
    finally:
        await asyncio.to_thread(spool.close)


@asynccontextmanager
async def opened_wire(
    settings: GatewayConfig, captured: CaptureConfig
) -> AsyncIterator[Wire | None]:
    """Open what takes rows from answers, if any route asks for it."""
    routes = {name: route for name, route in settings.routes.items() if route.capture == "wire"}
    if not routes:
        yield None
        return
    folders = {name: route.model or route.tokenizer for name, route in routes.items()}
    tokenizers = {name: tokenizer_hash(folder) for name, folder in folders.items() if folder}
    spool = Spool(captured.spool, "logits", encode_logits, limits=spool_limits(captured))
    try:
        yield Wire(spool, captured, tokenizers)
    finally:
        await asyncio.to_thread(spool.close)


def spool_limits(captured: CaptureConfig) -> SpoolLimits:
    """When rows reach the disk, as configured."""
    return SpoolLimits(
        sync_seconds=captured.sync_seconds,
        segment_bytes=captured.segment_bytes,
        segment_seconds=captured.segment_seconds,
        buffer_bytes=captured.buffer_bytes,
        holds_rows=captured.overflow == "shed_traffic",
    )


@asynccontextmanager
async def opened_upstream(settings: GatewayConfig) -> AsyncIterator[Upstream]:
    """Open the pool that answers clients."""
    upstream = Upstream.create(settings.connect_timeout_seconds, settings.idle_timeout_seconds)
    try:
        yield upstream
    finally:
        await upstream.close()


@asynccontextmanager
async def opened_fleet(settings: GatewayConfig, captured: CaptureConfig) -> AsyncIterator[Fleet]:
    """Open the fleet; on the way out every engine ends, and its tap's spool with it."""
    fleet = Fleet(settings.run_dir, captured)
    try:
        yield fleet
    finally:
        await fleet.stop_all()


def admin_key(run_dir: Path) -> str:
    """Read the operators' key, making one at the first start; its file is readable by us only."""
    path = run_dir / "admin.key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(32), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
