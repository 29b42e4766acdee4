"""The promise to a client: how safe its exchange's row is before its last bytes leave.

The disk may fail or stall; a client never fails with it and waits for a bounded time.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from capture.writer import Spool, Written
from gateway.errors import CaptureFullError
from gateway.exchange import Exchange
from gateway.wiring import Wire

Promise = Literal["durable", "strict", "best_effort"]
Overflow = Literal["shed_capture", "shed_traffic"]
WAITS_FOR = {"best_effort": (), "durable": ("written",), "strict": ("written", "synced")}
WRITE_SECONDS = 5.0  # only a disk that hangs takes longer


class Keeper:
    """Hands ended exchanges to the spool; used from one event loop."""

    def __init__(
        self,
        spool: Spool[Exchange],
        *,
        wait_seconds: float,
        overflow: Overflow,
        on_late: Callable[[Exchange], None],
        write_seconds: float = WRITE_SECONDS,
    ) -> None:
        """Begin with a disk that is thought to work.

        Args:
            spool: Where the rows go.
            wait_seconds: Longest time that a client's last bytes wait for its row's sync.
            overflow: Whether, while the spool's buffer is full, rows or requests are refused.
            on_late: Called for each exchange whose last bytes left before its row was safe.
            write_seconds: Longest time that they wait for its row to be written.
        """
        self._spool = spool
        self._patience = {"written": _Patience(write_seconds), "synced": _Patience(wait_seconds)}
        self._overflow = overflow
        self._on_late = on_late

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

        A row whose sync takes too long has still been written: it survives our death.

        Args:
            exchange: Ended.
            promise: The route's.
            wire: Takes what its answer told of its distributions, before the exchange's own row.
        """
        offers: list[Callable[..., bool]] = []
        if exchange.wire is not None and wire is not None:
            await wire.find_prompt(exchange, exchange.wire)
            offers.append(partial(wire.offer, exchange, exchange.wire))
        offers.append(partial(self._spool.offer, exchange, exchange.num_bytes))
        steps: dict[str, list[asyncio.Future[bool]]] = {name: [] for name in WAITS_FOR[promise]}
        for offer in offers:
            begun = {name: self._patience[name].begin() for name in steps}
            if offer(**{name: tell for name, (_, tell) in begun.items()}):
                for name, (done, _) in begun.items():
                    steps[name].append(done)
        safe = [await self._patience[name].wait(steps[name]) for name in steps]
        if not all(safe):
            self._on_late(exchange)


class _Patience:
    """Waits for the disk to take one step with rows.

    After one wait in vain nobody waits any more, until the disk has answered again.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_at_end = False
        self._taken: deque[asyncio.Future[bool]] = deque()
        self._is_scheduled = False

    def begin(self) -> tuple["asyncio.Future[bool]", Written]:
        """What says whether a row has taken the step, and what any thread tells it with."""
        loop = asyncio.get_running_loop()
        step: asyncio.Future[bool] = loop.create_future()

        def tell() -> None:
            self._taken.append(step)
            if self._is_scheduled:  # the loop is woken once for all rows of a write
                return
            self._is_scheduled = True
            with contextlib.suppress(RuntimeError):  # it has closed: nobody waits any more
                loop.call_soon_threadsafe(self._resolve)

        return step, tell

    def _resolve(self) -> None:
        self._is_scheduled = False
        self._is_at_end = False
        while self._taken:
            _settle(self._taken.popleft(), is_done=True)

    async def wait(self, steps: "Sequence[asyncio.Future[bool]]") -> bool:
        """Wait for all of them, and return whether they are done."""
        if self._is_at_end:
            return all(step.done() for step in steps)
        timer = asyncio.get_running_loop().call_later(self._seconds, _give_up, steps)
        are_done = [await step for step in steps]
        timer.cancel()
        self._is_at_end = not all(are_done)
        return not self._is_at_end


def _give_up(steps: "Sequence[asyncio.Future[bool]]") -> None:
    for step in steps:
        _settle(step, is_done=False)


def _settle(step: "asyncio.Future[bool]", *, is_done: bool) -> None:
    if not step.done():
        step.set_result(is_done)
