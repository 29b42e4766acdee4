"""Load through the official OpenAI client, and what came back."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import openai
from openai import AsyncOpenAI, AsyncStream

from gateway.demo.prompts import Prompt

CONCURRENCY = 16
MAX_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request as its client saw it.

    Attributes:
        text: The answer.
        failure: Why there is none.
        deployment: Who answered, as the gateway's header says.
        tokens: Generated tokens, where the answer says so.
    """

    prompt: Prompt
    text: str
    failure: str | None
    deployment: str | None
    tokens: int

    @property
    def is_exact(self) -> bool:
        """Whether the answer is the right one; JSON is compared by value."""
        return self.prompt.answer is not None and same_answer(self.text, self.prompt.answer)


class Client:
    """An app: asks one OpenAI-compatible server for one model.

    ``tagged`` marks every request for the tap, as the gateway does; for asking an engine directly.
    """

    def __init__(self, base_url: str, model: str, *, tagged: bool = False) -> None:
        self._model = model
        self._tagged = tagged
        self._api = AsyncOpenAI(base_url=f"{base_url}/v1", api_key="demo", max_retries=0)

    async def ask(self, prompt: Prompt, *, stream: bool) -> Outcome:
        """Send one request, greedy; a failure becomes part of the outcome."""
        tag = {"vllm_xargs": {"retort": uuid.uuid4().hex}} if self._tagged else None
        try:
            raw = await self._api.chat.completions.with_raw_response.create(
                model=self._model,
                messages=prompt.chat,  # type: ignore[arg-type]  # the client's types want each role's own class
                temperature=0,
                max_tokens=MAX_TOKENS,
                stream=stream,
                extra_body=tag,
            )
            deployment = raw.headers.get("x-retort-deployment")
            parsed = raw.parse()
            if isinstance(parsed, AsyncStream):
                deltas = [
                    chunk.choices[0].delta.content or "" async for chunk in parsed if chunk.choices
                ]
                return Outcome(prompt, "".join(deltas), None, deployment, 0)
        except openai.OpenAIError as error:
            return Outcome(prompt, "", f"{type(error).__name__}: {error}", None, 0)
        tokens = parsed.usage.completion_tokens if parsed.usage else 0
        return Outcome(prompt, parsed.choices[0].message.content or "", None, deployment, tokens)

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()


async def send(
    client: Client,
    prompts: Iterator[Prompt],
    *,
    stop: Callable[[int], bool],
    on_outcome: Callable[[Outcome], None],
    streaming: bool = True,
    concurrency: int = CONCURRENCY,
) -> None:
    """Keep ``concurrency`` requests under way until ``stop(sent)``; every other one streams."""
    sent = 0

    async def worker() -> None:
        nonlocal sent
        while not stop(sent):
            prompt = next(prompts, None)
            if prompt is None:
                return
            sent += 1
            stream = streaming and sent % 2 == 0
            on_outcome(await client.ask(prompt, stream=stream))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(worker())


@dataclass(frozen=True, slots=True)
class Round:
    """All prompts asked once."""

    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over wall time."""
        return sum(outcome.tokens for outcome in self.outcomes) / self.seconds

    def exact_match(self, which: str) -> float | None:
        """Share of right answers in one slice; None where no answers are known."""
        scored = [
            o for o in self.outcomes if o.prompt.slice == which and o.prompt.answer is not None
        ]
        return sum(outcome.is_exact for outcome in scored) / len(scored) if scored else None


async def ask_all(client: Client, prompts: Sequence[Prompt]) -> Round:
    """Ask every prompt once, without streaming, ``CONCURRENCY`` at a time."""
    outcomes: list[Outcome] = []
    started = time.perf_counter()
    await send(
        client, iter(prompts), stop=lambda _: False, on_outcome=outcomes.append, streaming=False
    )
    return Round(tuple(outcomes), time.perf_counter() - started)


def same_answer(one: str, other: str) -> bool:
    """Whether two answers say the same: equal JSON values, else equal text."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return one.strip() == other.strip()
