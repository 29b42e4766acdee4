"""One rollout in the state store, which several gateways may share, as this one knows it."""

import asyncio
import time
from dataclasses import replace

from gateway.errors import StateConflictError, StateStoreError
from gateway.evidence import Evidence
from gateway.rollout import Decision, Rollout, go_back_too
from gateway.state import Saved, StateStore

SAVE_SECONDS = 2.0  # evidence of the last seconds is lost when we are killed


class Ledger:
    """Reads and writes it; not to be used by two at a time.

    Attributes:
        unsaved: Evidence of the present stage that only we have.
    """

    def __init__(self, saved: Saved, store: StateStore) -> None:
        self.unsaved = Evidence()
        self._id = saved.rollout.id
        self._version = saved.version
        self._store = store
        self._saved_at = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time to write down what we have seen."""
        return time.monotonic() - self._saved_at > SAVE_SECONDS

    async def save(self, rollout: Rollout) -> None:
        """Write it down as it stands.

        Raises:
            StateConflictError: If another gateway was first; read it again.
            StateStoreError: If the state store fails.
        """
        self._version = await asyncio.to_thread(self._store.save, rollout, self._version)
        self._saved_at = time.monotonic()

    async def save_evidence(self, rollout: Rollout) -> None:
        """Write down a rollout whose evidence has in it what was unsaved.

        Raises:
            StateConflictError: If another gateway was first.
            StateStoreError: If the state store fails.
        """
        ours, self.unsaved = self.unsaved, Evidence()
        try:
            await self.save(rollout)
        except (StateConflictError, StateStoreError):
            self.unsaved = ours + self.unsaved
            raise

    async def news(self) -> Rollout | None:
        """Read it; None if it is as we have last read or written it.

        Raises:
            StateStoreError: If the state store fails.
        """
        saved, version = await asyncio.to_thread(self._store.load, self._id)
        is_known, self._version = version == self._version, version
        return None if is_known else saved

    async def save_way_back(self, decision: Decision, stage: int) -> Rollout:
        """Write down a way back on top of what is there by now, unless that has gone back too.

        What others have added to the stage that was left is evidence too; where they have moved
        on, or live, they go back as well.

        Args:
            decision: Made in a stage that others may have left since.
            stage: How many moves led to that stage.

        Returns:
            What is written down then.

        Raises:
            StateStoreError: If the state store fails.
        """
        while True:
            saved, self._version = await asyncio.to_thread(self._store.load, self._id)
            if saved.state == "rolled_back":
                return saved
            is_there = len(saved.history) == stage
            seen = saved.evidence + self.unsaved if is_there else decision.evidence
            moved = go_back_too(saved, replace(decision, evidence=seen))
            try:
                await self.save(moved)
            except StateConflictError:
                continue
            return moved
