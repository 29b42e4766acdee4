"""The committer beside the gateway: a process of its own, started again whenever it ends."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from capture.process import GuardedProcess

LOOK_SECONDS = 0.5
logger = logging.getLogger(__name__)


@asynccontextmanager
async def committing(config: Path, run_dir: Path) -> AsyncIterator[None]:
    """Keep ``retort log commit --watch`` running; it makes a last commit when we end it."""
    child = _Child(config, run_dir / "committer.log")
    watching = asyncio.create_task(child.watch())
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await asyncio.to_thread(child.process.stop)


class _Child:
    def __init__(self, config: Path, log_path: Path) -> None:
        self._command = [
            *(sys.executable, "-m", "gateway", "log", "commit", "--watch"),
            *("-c", str(config)),
        ]
        self._log_path = log_path
        self.process = self._start()

    async def watch(self) -> None:
        """Start the process again when it has ended; what it left undone the next one does."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self.process.is_running:
                logger.warning("the committer has ended, see %s; starting it", self._log_path)
                await asyncio.to_thread(self.process.stop)
                self.process = await asyncio.to_thread(self._start)

    def _start(self) -> GuardedProcess:
        return GuardedProcess.start(self._command, {}, self._log_path)
