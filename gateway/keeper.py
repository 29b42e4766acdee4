"""The promise to a client: how safe its exchange's row is before its last bytes leave.

The disk may fail or stall; a client never fails with it and waits for a bounded time.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Literal

from capture.writer import Spool, Written
from gateway.errors import CaptureFullError
from gateway.exchange import Exchange
from gateway.wiring import Wire

Promise = Literal["durable", "strict", "best_effort"]
Overflow = Literal["shed_capture", "shed_traffic"]


class Keeper:
    """Hands ended exchanges to the spool; used from one event loop.

    After one wait that came to nothing nobody waits any more, until the disk has answered again.
    """

    def __init__(
        self,
        spool: Spool[Exchange],
        *,
        wait_seconds: float,
        overflow: Overflow,
        on_late: Callable[[Exchange], None],
    ) -> None:
        """Begin with a disk that is thought to work.

        Args:
            spool: Where the rows go.
            wait_seconds: Longest time that a client's last bytes wait for its row.
            overflow: Whether, while the spool's buffer is full, rows or requests are refused.
            on_late: Called for each exchange whose last bytes left before its row was safe.
        """
        self._spool = spool
        self._wait_seconds = wait_seconds
        self._overflow = overflow
        self._on_late = on_late
        self._stalled: set[Promise] = set()

    def begin(self) -> None:
        """Count an exchange as started.

        Raises:
            CaptureFullError: If its row would probably find no room, and requests are to be
                refused then.
        """
        if self._overflow == "shed_traffic" and self._spool.is_filling:
            raise CaptureFullError("the log cannot take more at the moment; retry later")
        self._spool.account.start()

    async def keep(self, exchange: Exchange, promise: Promise, wire: Wire | None = None) -> None:
        """Hand over an ended exchange and wait as long as the promise asks, but never for long.

        Args:
            exchange: Ended.
            promise: The route's.
            wire: Takes what its answer told of its distributions, before the exchange's own row.
        """
        synced = promise == "strict"
        offers: list[Callable[[Written], bool]] = []
        heard = exchange.wire
        if heard is not None and wire is not None:
            offers.append(lambda written: wire.offer(exchange, heard, written, synced=synced))
        size = exchange.num_bytes
        offers.append(
            lambda written: self._spool.offer(exchange, size, written=written, synced=synced)
        )
        waits = [safe for safe in (self._offered(offer, promise) for offer in offers) if safe]
        if not waits or promise == "best_effort":
            return
        if promise not in self._stalled:
            await asyncio.wait(waits, timeout=self._wait_seconds)
        if not all(safe.done() for safe in waits):
            self._stalled.add(promise)
            self._on_late(exchange)

    def _offered(
        self, offer: Callable[[Written], bool], promise: Promise
    ) -> "asyncio.Future[None] | None":
        """What is done once a row is as safe as promised; None if it was not taken."""
        loop = asyncio.get_running_loop()
        safe: asyncio.Future[None] = loop.create_future()

        def resolve() -> None:
            self._stalled.discard(promise)
            if not safe.done():
                safe.set_result(None)

        def written() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
                loop.call_soon_threadsafe(resolve)

        return safe if offer(written) else None
