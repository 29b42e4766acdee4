"""Streams of completions asked of one engine, timed chunk by chunk."""

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
import orjson


@dataclass(frozen=True, slots=True)
class Measured:
    """One round of requests.

    Attributes:
        tokens: Generated tokens, as the engine counts them.
        seconds: Wall time from the first request to the last byte.
        gaps_ms: Times between successive chunks of the same stream.
        cpu_seconds: Processor time of the engine, all its processes.
    """

    tokens: int
    seconds: float
    gaps_ms: Sequence[float]
    cpu_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over wall time."""
        return self.tokens / self.seconds

    @property
    def cpu_us_per_token(self) -> float:
        """Microseconds of the engine's processor time per generated token."""
        return 1e6 * self.cpu_seconds / self.tokens

    def gap_ms(self, percentile: float) -> float:
        """Inter-token latency, milliseconds."""
        return float(np.percentile(self.gaps_ms, percentile))


class Load:
    """Requests of fixed length to ``/v1/completions``: random prompts, ``max_tokens`` each."""

    def __init__(
        self, url: str, vocabulary: int, max_tokens: int, extra: Mapping[str, Any], *, tagged: bool
    ) -> None:
        self._url = f"{url}/v1/completions"
        self._vocabulary = vocabulary
        self._max_tokens = max_tokens
        self._extra = extra
        self._tagged = tagged

    async def run(self, num_requests: int, concurrency: int, seed: int) -> Measured:
        """Send the requests, ``concurrency`` at a time; the same seed gives the same prompts."""
        source = random.Random(seed)
        prompts = iter(
            [
                [source.randrange(10, self._vocabulary) for _ in range(16)]
                for _ in range(num_requests)
            ]
        )
        gaps: list[float] = []
        counts: list[int] = []
        connector = aiohttp.TCPConnector(limit=concurrency, force_close=True)
        started = time.perf_counter()
        async with aiohttp.ClientSession(connector=connector) as session:

            async def worker() -> None:
                counts.extend([await self._stream(session, prompt, gaps) for prompt in prompts])

            async with asyncio.TaskGroup() as tasks:
                for _ in range(concurrency):
                    tasks.create_task(worker())
        return Measured(sum(counts), time.perf_counter() - started, gaps)

    async def _stream(
        self, session: aiohttp.ClientSession, prompt: list[int], gaps: list[float]
    ) -> int:
        """Read one stream; its length in tokens."""
        body = {
            "model": "bench",
            "prompt": prompt,
            "max_tokens": self._max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extra,
        }
        if self._tagged:
            body["vllm_xargs"] = {"retort": uuid.uuid4().hex}
        arrivals: list[float] = []
        usage = b""
        async with session.post(self._url, data=orjson.dumps(body), headers=JSON) as answer:
            if answer.status != 200:
                raise RuntimeError(f"the engine answered {answer.status}: {await answer.text()}")
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    arrivals.append(time.perf_counter())
                    usage = line
        # The last event is the usage; it follows the last token at once.
        gaps += [1000 * (b - a) for a, b in itertools.pairwise(arrivals[:-1])]
        return int(orjson.loads(usage[len(b"data: ") :])["usage"]["completion_tokens"])


JSON = {"content-type": "application/json"}
