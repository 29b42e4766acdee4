"""How fast engines are beside each other: asked the same in turn, so that load falls on all."""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import psutil

from capture.engine import Engine

ROUNDS = 4
STREAMS = 4
DECODED = 48  # tokens of each answer
PREFILLED = 192  # tokens of each prompt
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one engine.

    Attributes:
        decode: Tokens per second of ``STREAMS`` answers at once, round by round.
        prefill: Tokens per second of as many prompts at once, likewise.
        memory_bytes: Of its processes, what they share counted once.
    """

    decode: tuple[float, ...]
    prefill: tuple[float, ...]
    memory_bytes: int

    def decode_over(self, other: "Speed") -> float:
        """Median over the rounds of this engine's speed over another's of the same rounds."""
        return _ratio(self.decode, other.decode)

    def prefill_over(self, other: "Speed") -> float:
        """Likewise of prompts."""
        return _ratio(self.prefill, other.prefill)


def compare_speeds(engines: Sequence[Engine], vocabulary: int) -> list[Speed]:
    """Ask every engine the same in turn, round after round, after a warm-up of each.

    Args:
        engines: Ready ones.
        vocabulary: Token ids to choose prompts from, below this.

    Raises:
        httpx.HTTPError: If an engine fails.
    """
    decode: list[list[float]] = [[] for _ in engines]
    prefill: list[list[float]] = [[] for _ in engines]
    for number in range(-1, ROUNDS):
        order = range(len(engines)) if number % 2 else reversed(range(len(engines)))
        for index in order:
            # New prompts each time: the engine keeps what it has seen.
            slow = _tokens_per_second(engines[index], _prompts(number, 8, vocabulary), DECODED)
            fast = _tokens_per_second(engines[index], _prompts(number, PREFILLED, vocabulary), 1)
            if number >= 0:
                decode[index].append(slow)
                prefill[index].append(fast)
    return [
        Speed(tuple(decode[i]), tuple(prefill[i]), memory_of(engine))
        for i, engine in enumerate(engines)
    ]


def memory_of(engine: Engine) -> int:
    """Bytes that an engine's processes hold, what they share counted once."""
    children = psutil.Process(engine.pid).children(recursive=True)
    return sum(int(child.memory_full_info().pss) for child in children)


def _prompts(number: int, length: int, vocabulary: int) -> list[list[int]]:
    """``STREAMS`` different prompts, others in every round."""
    start = 7919 * (number + 2)
    return [
        [(start + 104729 * stream + 31 * place * place) % vocabulary for place in range(length)]
        for stream in range(STREAMS)
    ]


def _tokens_per_second(engine: Engine, prompts: list[list[int]], tokens: int) -> float:
    """Generated tokens per second, or read ones where only one is generated."""

    def ask(prompt: list[int]) -> None:
        body = {"model": engine.spec.served_name, "prompt": prompt, "max_tokens": tokens}
        body |= {"temperature": 0, "ignore_eos": True}
        answer = httpx.post(
            f"{engine.url}/v1/completions", json=body, timeout=TIMEOUT_SECONDS, trust_env=False
        )
        answer.raise_for_status()

    began = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(ask, prompts))
    count = sum(len(prompt) if tokens == 1 else tokens for prompt in prompts)
    return count / (time.perf_counter() - began)


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
