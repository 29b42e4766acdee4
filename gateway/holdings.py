"""What the gateway holds while it serves: opened and closed by contexts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from capture.config import CaptureConfig
from capture.redaction import Redactor
from capture.revision import tokenizer_hash
from capture.rows import encode_logits
from capture.spelling import Spelling
from capture.writer import Spool, SpoolLimits
from gateway.config import GatewayConfig
from gateway.exchange import Exchange, encode
from gateway.fleet import Fleet
from gateway.gate import Gate
from gateway.hold import Hold
from gateway.keeper import Keeper
from gateway.keyholder import Keyholder
from gateway.keystore import KeyStore
from gateway.metrics import Metrics
from gateway.observers import Observers, in_turn
from gateway.reload import Settings
from gateway.routing import RouteTable
from gateway.secret_files import key_pepper
from gateway.serving import Serving
from gateway.upstream import Upstream
from gateway.wiring import Wire


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
    named = {name: route.tokenizer for name, route in routes.items() if route.tokenizer}
    spellings = {name: await asyncio.to_thread(Spelling.open, at) for name, at in named.items()}
    spool = Spool(captured.spool, "logits", encode_logits, limits=spool_limits(captured))
    try:
        yield Wire(spool, captured, tokenizers, spellings)
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
async def opened_upstream() -> AsyncIterator[Upstream]:
    """Open the pool of connections that answers clients."""
    upstream = Upstream.create()
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


@asynccontextmanager
async def keys_held(settings: GatewayConfig, pepper: str | None, gate: Gate) -> AsyncIterator[None]:
    """Keep a gate's keys up to date; on the way out the state store has all that was used."""
    if not settings.asks_for_keys:
        yield
        return
    store = KeyStore(settings.state_store)
    keyholder = Keyholder(gate, store, key_pepper(settings.run_dir, pepper))
    await keyholder.refresh()
    ending = asyncio.Event()
    refreshing = asyncio.create_task(keyholder.run(ending))
    try:
        yield
    finally:
        ending.set()
        await refreshing
        store.close()


@asynccontextmanager
async def opened_serving(
    settings: Settings, pepper: str | None, gate: Gate, metrics: Metrics, observers: Observers
) -> AsyncIterator[Serving]:
    """Open what every request needs, its table still empty."""
    config, captured = settings.gateway, settings.capture
    async with (
        opened_spool(captured) as spool,
        opened_wire(config, captured) as wire,
        opened_upstream() as upstream,
        keys_held(config, pepper, gate),
    ):
        yield Serving(
            config=config,
            table=RouteTable({}),
            upstream=upstream,
            spool=spool,
            on_begun=in_turn(metrics.begin, *observers.begun),
            on_ended=in_turn(metrics.end, *observers.ended),
            keeper=Keeper(
                spool,
                wait_seconds=captured.wait_seconds,
                overflow=captured.overflow,
                on_late=metrics.count_late,
            ),
            redactor=Redactor(captured.redact),
            wire=wire,
            on_refused=in_turn(metrics.refuse, *observers.refused),
            on_cascade=metrics.count_cascade,
            trainings=await asyncio.to_thread(settings.read_trainings),
            gate=gate,
            hold=Hold(metrics.count_held),
        )
