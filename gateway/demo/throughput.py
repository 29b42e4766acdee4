"""What capture costs: two engines of the same model, one with the tap, asked in turn."""

import asyncio
import statistics
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from capture.config import CaptureConfig
from capture.engine import EngineSpec
from capture.host import SMALL_ENGINE_ENV, USUAL_EXECUTOR
from gateway.demo.prompts import Prompt
from gateway.demo.services import engine_running
from gateway.demo.traffic import Client, Round, ask_all
from gateway.demo.workspace import ROUTE, Workspace

PAIRS = 5


@dataclass(frozen=True, slots=True)
class Comparison:
    """Tokens per second with and without the tap, pair by pair, and the teacher's own answers.

    Attributes:
        on: Tokens per second with every request captured.
        off: Tokens per second of the engine without a tap.
        teacher: Every test prompt, asked of the engine without a tap.
    """

    on: tuple[float, ...]
    off: tuple[float, ...]
    teacher: Round

    @property
    def ratio(self) -> float:
        """Median of on / off over the pairs."""
        return statistics.median(on / off for on, off in zip(self.on, self.off, strict=True))


@asynccontextmanager
async def bench_engines(work: Workspace) -> AsyncIterator[tuple[str, str]]:
    """Run the teacher with and without the tap; gives both addresses, with first.

    The rows of this measurement go to a spool of their own, not to the log.
    """
    bench = work.home / "bench"
    capture = CaptureConfig(log=bench / "log", spool=bench / "spool")
    async with AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as tasks:
            starting = [
                tasks.create_task(
                    stack.enter_async_context(engine_running(_spec(work, name, tapped)))
                )
                for name, tapped in (("tap-on", capture), ("tap-off", None))
            ]
        yield starting[0].result(), starting[1].result()


def _spec(work: Workspace, name: str, capture: CaptureConfig | None) -> EngineSpec:
    """An engine as vLLM usually runs it: in the process that a small one saves, the tap works."""
    log = work.home / "run" / "engines" / f"{name}.log"
    args = (*work.engine_args, *USUAL_EXECUTOR)
    return EngineSpec(work.teacher, ROUTE, log, args, SMALL_ENGINE_ENV, capture)


async def compare_throughput(
    urls: tuple[str, str],
    sample: Sequence[Prompt],
    test: Sequence[Prompt],
    advance: Callable[[], None],
) -> Comparison:
    """Ask both engines the same sample in turn, after a warm-up of each.

    Args:
        urls: Engine with the tap, engine without.
        sample: Prompts of one measurement.
        test: Prompts asked once more of the engine without, for the teacher's quality.
        advance: Called after each of ``2 * PAIRS + 3`` measurements.
    """
    with_tap = Client(urls[0], ROUTE, tagged=True)
    without = Client(urls[1], ROUTE)
    speeds: dict[Client, list[float]] = {with_tap: [], without: []}
    for client in speeds:
        await ask_all(client, sample[: len(sample) // 4])
        advance()
    for turn in range(PAIRS):
        for client in (with_tap, without) if turn % 2 else (without, with_tap):
            speeds[client].append((await ask_all(client, sample)).tokens_per_second)
            advance()
    teacher = await ask_all(without, test)
    advance()
    for client in speeds:
        await client.close()
    return Comparison(tuple(speeds[with_tap]), tuple(speeds[without]), teacher)
