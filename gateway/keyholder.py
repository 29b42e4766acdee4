"""Keys and usage, between the gate and the state store: each second both learn from the other."""

import asyncio
import contextlib
import logging
import time
from collections import Counter

from gateway.errors import StateStoreError
from gateway.gate import Gate
from gateway.keys import ApiKey, KeyRing
from gateway.keystore import KeyStore, Used

REFRESH_SECONDS = 1.0
logger = logging.getLogger(__name__)


class Keyholder:
    """Gives a gate its keys, and the state store what they have used.

    While the store fails, the keys known last go on, and what is used waits for it. Gateways that
    share a store see what the others have used a second later.
    """

    def __init__(self, gate: Gate, store: KeyStore, pepper: bytes) -> None:
        self._gate = gate
        self._store = store
        self._pepper = pepper
        self._is_failing = False

    async def refresh(self) -> None:
        """Exchange once.

        Raises:
            StateStoreError: If the store fails; nothing was lost.
        """
        gate = self._gate
        requests, gate.requests = gate.requests, Counter()
        tokens, gate.tokens = gate.tokens, Counter()
        used = {key: Used(requests[key], tokens[key]) for key in requests.keys() | tokens.keys()}
        try:
            await asyncio.to_thread(self._store.add_used, used)
        except StateStoreError:
            gate.requests.update(requests)
            gate.tokens.update(tokens)
            raise
        keys = await asyncio.to_thread(self._store.keys)
        gate.ring = KeyRing(self._pepper, keys)
        totals: dict[ApiKey, int] = {key: u.tokens + gate.tokens[key.id] for key, u in keys.items()}
        gate.limiter.set_used(totals, time.monotonic())

    async def run(self, ending: asyncio.Event) -> None:
        """Exchange every second until told to end, and then once more.

        To be told, not cancelled: whoever is cancelled while the store works does not learn whether
        it has what was used.
        """
        while not ending.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), REFRESH_SECONDS)
            try:
                await self.refresh()
            except StateStoreError as error:
                if not self._is_failing:
                    logger.warning("keys are not read and usage waits: %s", error)
                self._is_failing = True
            else:
                self._is_failing = False
