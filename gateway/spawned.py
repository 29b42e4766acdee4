"""A further process of the gateway, and the channel to it: it ends when we do."""

import asyncio
import multiprocessing
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from multiprocessing.process import BaseProcess
from typing import TypeVar

from gateway.channel import Channel, Handler

END_SECONDS = 60.0
Plan = TypeVar("Plan")


@asynccontextmanager
async def spawned(
    work: Callable[[Plan], None],
    plan: Callable[[socket.socket], Plan],
    handlers: Mapping[str, Handler],
) -> AsyncIterator[Channel]:
    """Start a process; leaving the context ends the channel to it and waits for its end.

    Args:
        work: What it does, until its end of the channel is closed.
        plan: Makes what it is given, from its end of a socket pair.
        handlers: For what it says. The channel is ours to ``run``.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    channel = await Channel.opened(ours, handlers)
    with theirs:
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(plan(theirs),), daemon=True
        )
        starting = asyncio.create_task(asyncio.to_thread(process.start))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            channel.close()
            await starting
            await _until_ended(process)
            raise
    try:
        yield channel
    finally:
        channel.close()
        await _until_ended(process)


async def _until_ended(process: BaseProcess) -> None:
    await asyncio.to_thread(process.join, END_SECONDS)
    if process.is_alive():
        process.kill()
        await asyncio.to_thread(process.join)
    process.close()
