"""One engine takes another's place where there is no room for both, and gives it back if need be.

Clients wait meanwhile, as long as they are let (``gateway.hold``). Every step can be done again:
a gateway that was killed in the middle begins with the first.
"""

import asyncio
import logging
import time
from datetime import UTC, datetime

from capture.errors import EngineError
from gateway.drain import UnderWay
from gateway.errors import GatewayError, RolloutError
from gateway.fleet import Fleet
from gateway.rollout import begin_watch
from gateway.supervisor import pause_seconds
from gateway.trial import Trial

logger = logging.getLogger(__name__)


class Replacement:
    """Exchanges the engines of trials."""

    def __init__(self, fleet: Fleet, under_way: UnderWay) -> None:
        self._fleet = fleet
        self._under_way = under_way

    async def forward(self, trial: Trial, drain_seconds: float) -> Exception | None:
        """Set the incumbent aside, start the candidate, and let it answer.

        Whatever goes wrong rolls the rollout back; ``back`` is to follow then.

        Args:
            trial: Of a rollout that replaces, its candidate not started yet.
            drain_seconds: How long the incumbent may take for what it has begun.

        Returns:
            Why the candidate does not answer, if it does not.
        """
        async with trial.exchanging:
            try:
                seconds = await self._exchange(trial, drain_seconds)
            except (EngineError, GatewayError) as error:
                logger.error("rollout %s is rolled back: %s", trial.rollout.id, error)  # noqa: TRY400
                await trial.give_up(str(error).splitlines()[0])
                return error
            trial.timed_from = time.monotonic() + seconds  # as long as that a crowd is served
            trial.switch(trial.candidate.name)
        return None

    async def _exchange(self, trial: Trial, drain_seconds: float) -> float:
        """Let the candidate be watched in the incumbent's place; how many seconds that took.

        Raises:
            RolloutError: If the incumbent does not finish in time, or the rollout has ended.
            EngineError: If the incumbent makes no room, or the candidate does not generate.
            StateStoreError: If that cannot be written down.
        """
        began = time.monotonic()
        await self._make_room(trial, drain_seconds)
        _go_on(trial)
        await self._fleet.bring_up(trial.candidate.name)
        seconds = time.monotonic() - began
        note = f"its engine has answered after {seconds:.1f} s"
        await trial.decide(lambda rollout: begin_watch(rollout, datetime.now(UTC), note))
        _go_on(trial)
        return seconds

    async def _make_room(self, trial: Trial, drain_seconds: float) -> None:
        """Let the incumbent finish what it has begun, and give up its memory.

        Raises:
            RolloutError: If it does not finish in time, or the rollout has ended meanwhile.
            EngineError: If it does not give it up.
        """
        name = trial.incumbent.name
        if trial.up == name:
            draining = asyncio.create_task(self._under_way.is_drained(name, drain_seconds))
            ending = asyncio.create_task(trial.ended.wait())
            try:
                await asyncio.wait({draining, ending}, return_when=asyncio.FIRST_COMPLETED)
                _go_on(trial)
                if not draining.result():
                    raise RolloutError(
                        f"{name} has requests under way after {drain_seconds:g} s, which nobody "
                        "wants to cut off; raise rollout.drain_seconds or try when there are fewer"
                    )
            finally:
                for task in (draining, ending):
                    task.cancel()
                await asyncio.gather(draining, ending, return_exceptions=True)
        trial.switch(None)
        await self._fleet.set_aside(name)

    async def back(self, trial: Trial, drain_seconds: float) -> None:
        """End the candidate and let the incumbent answer again, however often it must be tried.

        Several may ask for it: whoever comes later finds it done.
        """
        candidate, incumbent = trial.candidate.name, trial.incumbent.name
        async with trial.exchanging:
            if trial.up == candidate and trial.candidate.pool.is_serving:
                await self._under_way.is_drained(candidate, drain_seconds)
            await self._fleet.stop(candidate)
            tries = 0
            while trial.up != incumbent:
                try:
                    await self._fleet.bring_up(incumbent)
                except EngineError as error:
                    tries += 1
                    logger.error("%s\ntrying again in %.0f s", error, pause_seconds(tries))  # noqa: TRY400
                    await asyncio.sleep(pause_seconds(tries))
                else:
                    trial.switch(incumbent)
                    logger.info("rollout %s: %s answers again", trial.rollout.id, incumbent)


def _go_on(trial: Trial) -> None:
    """See that nobody has ended the rollout meanwhile.

    Raises:
        RolloutError: If somebody has.
    """
    if trial.rollout.state == "rolled_back":
        note = trial.rollout.history[-1].note
        raise RolloutError(f"rollout {trial.rollout.id} was rolled back meanwhile ({note})")
