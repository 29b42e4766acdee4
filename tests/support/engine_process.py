"""A fake engine with a tap's spool, to be killed: ``python -m tests.support.engine_process``.

For every tagged request it spools one row of distributions, written before its answer's last
bytes, as the tap does for an answer whose last token it has seen.
"""

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from capture.rows import LogitRow, encode_logits
from capture.writer import Spool, SpoolLimits
from gateway.listener import bound, listening
from tests.support.fake_engine import Body, FakeEngine
from tests.support.log_rows import logit_row

LIMITS = SpoolLimits(segment_seconds=0.1)


class TappedEngine(FakeEngine):
    """Spools a row for every answer that begins."""

    def __init__(self, spool: Spool[LogitRow]) -> None:
        super().__init__(answer=" ".join(map(str, range(20))))
        self.spool = spool
        self.tokenizer_hash = "tok"

    async def chat(self, request: Request) -> Response:
        tags = (await request.json()).get("vllm_xargs", {})
        if tags:
            self.spool.account.start()
            written = threading.Event()
            row = replace(logit_row(str(tags["retort"])), tokenizer_hash=self.tokenizer_hash)
            self.spool.offer(row, row.num_bytes, written=written.set)
            await asyncio.to_thread(written.wait)
        return await super().chat(request)

    async def events(self, word: str, body: Body) -> AsyncIterator[bytes]:
        async for event in super().events(word, body):
            yield event
            await asyncio.sleep(0.001)


async def run(address: str, folder: Path) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    spool = Spool(folder, "logits", encode_logits, limits=LIMITS)
    async with listening(TappedEngine(spool).app, bound(address), grace_seconds=1):
        await stop.wait()
    await asyncio.to_thread(spool.close)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], Path(sys.argv[2])))
