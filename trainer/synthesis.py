"""Synthetic data: prompts asked through a running gateway, and which answers are to be learned.

The gateway captures the answers by itself. What is written here names them and says whether each
was accepted; no text leaves the log, so that erasing there erases everything.
"""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from capture.errors import ConfigError
from trainer.endpoint import explained
from trainer.judging import Judge, Verdict
from trainer.prompts import Prompt

EXCHANGE_ID = "x-retort-exchange-id"
FAILURES_IN_A_ROW = 8  # then it is not the prompts
REFUSALS = (400, 413, 422)  # of one prompt, not of all


@dataclass(frozen=True, slots=True)
class Line:
    """One prompt's line of the file.

    Attributes:
        prompt: SHA-256 of its messages.
        exchange_id: Under which the gateway captured it; None if it refused the prompt.
        accepted: Whether it is to be learned from.
        reason: Why not.
        answered: SHA-256 of messages and answer.
        score: The judge's, if it gave one.
    """

    prompt: str
    exchange_id: str | None
    accepted: bool
    reason: str | None = None
    answered: str | None = None
    score: float | None = None


class Ledger:
    """The file of lines, gone on with where an earlier call ended; a line is kept once written.

    Attributes:
        counts: Lines by reason; accepted ones under ``accepted``.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; what a killed call left of a line is cut off.

        Raises:
            ConfigError: If the file holds something else.
        """
        self._path = path
        self._file: BinaryIO | None = None
        self.counts: Counter[str] = Counter()
        self._prompts: Counter[str] = Counter()
        self._answered: set[str] = set()
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._count(Line(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ConfigError(
                    f"{path}:{number}: not a line of `retort distill synthesize`; choose another "
                    "file with -o"
                ) from error
        if len(whole) < len(content):
            os.truncate(path, len(whole))

    def left(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """Prompts without a line; one that is asked twice has two."""
        seen: Counter[str] = Counter()
        for prompt in prompts:
            seen[prompt.digest] += 1
            if seen[prompt.digest] > self._prompts[prompt.digest]:
                yield prompt

    def claim(self, answered: str) -> bool:
        """Whether an answer was not given before; it is from now on."""
        if answered in self._answered:
            return False
        self._answered.add(answered)
        return True

    def release(self, answered: str) -> None:
        """Undo a claim: the answer gets no line."""
        self._answered.discard(answered)

    def add(self, line: Line) -> None:
        """Write a line."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        self._file.write(json.dumps(asdict(line)).encode() + b"\n")
        self._count(line)

    def close(self) -> None:
        """Bring what was written onto the disk."""
        if self._file is not None:
            os.fsync(self._file)
            self._file.close()

    def _count(self, line: Line) -> None:
        self.counts["accepted" if line.accepted else line.reason or "rejected"] += 1
        self._prompts[line.prompt] += 1
        if line.answered is not None:
            self._answered.add(line.answered)


@dataclass(slots=True)
class Synthesis:
    """Asks prompts, several at a time.

    Attributes:
        client: Of the gateway.
        url: Its address.
        route: Asked for every prompt.
        judge: Has the last word on an answer.
        ledger: Takes a line per prompt.
        max_tokens: Of an answer; None leaves it to the engine.
        num_failed: Prompts that were not answered, and have no line.
    """

    client: AsyncOpenAI
    url: str
    route: str
    judge: Judge
    ledger: Ledger
    max_tokens: int | None = None
    num_failed: int = 0
    _failures: int = field(default=0, init=False)  # in a row

    async def run(
        self, prompts: Iterator[Prompt], concurrency: int, on_line: Callable[[], None]
    ) -> None:
        """Ask all prompts.

        Raises:
            EndpointError: If the gateway fails again and again, or limits the rate.
            ConfigError: If it refuses the key or the route.
        """

        async def worker() -> None:
            for prompt in prompts:
                await self._take(prompt)
                on_line()

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(concurrency):
                    tasks.create_task(worker())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _take(self, prompt: Prompt) -> None:
        """Ask one prompt and write its line."""
        try:
            line = await self._ask(prompt)
        except openai.APIStatusError as error:
            if error.status_code in REFUSALS:
                reason = f"the gateway refused the prompt ({error.status_code})"
                line = Line(prompt.digest, None, accepted=False, reason=reason)
            else:
                self._fail(error)
                return
        except openai.OpenAIError as error:
            self._fail(error)
            return
        self._failures = 0
        self.ledger.add(line)

    def _fail(self, error: openai.OpenAIError) -> None:
        """Leave a prompt for the next call, unless all would fail."""
        self.num_failed += 1
        self._failures += 1
        problem = explained(error, self.url)
        is_for_all = isinstance(problem, ConfigError) or isinstance(error, openai.RateLimitError)
        if is_for_all or self._failures >= FAILURES_IN_A_ROW:
            raise problem from error

    async def _ask(self, prompt: Prompt) -> Line:
        raw = await self.client.chat.completions.with_raw_response.create(
            model=self.route,
            messages=prompt.chat,  # type: ignore[arg-type]  # the client's types want each role's own class
            max_tokens=openai.omit if self.max_tokens is None else self.max_tokens,
        )
        exchange_id = raw.headers.get(EXCHANGE_ID)
        if exchange_id is None:
            raise ConfigError(
                f"{self.url} does not name the exchange ({EXCHANGE_ID}): expected a Retort gateway"
            )
        completion = raw.parse()
        text = completion.choices[0].message.content or "" if completion.choices else ""
        answered = prompt.answered(text)
        objection = _objection(completion, text)
        if objection is None and not self.ledger.claim(answered):
            objection = "a duplicate"
        verdict = Verdict(is_accepted=False, reason=objection)
        if objection is None:
            try:
                verdict = await self.judge(prompt.chat, text)
            except BaseException:
                self.ledger.release(answered)
                raise
        return Line(
            prompt.digest,
            exchange_id,
            verdict.is_accepted,
            verdict.reason,
            answered,
            verdict.score,
        )


def _objection(completion: ChatCompletion, text: str) -> str | None:
    """What is wrong with an answer whatever it says."""
    if not text.strip():
        return "empty"
    reason = completion.choices[0].finish_reason
    return None if reason == "stop" else f"ended by {reason}"


def filter_of(path: Path) -> str:
    """SQL over ``examples`` that selects the accepted rows; the file is named from the root."""
    name = str(path.resolve()).replace("'", "''")
    columns = "{exchange_id: 'VARCHAR', accepted: 'BOOLEAN'}"
    read = f"read_json('{name}', format = 'newline_delimited', columns = {columns})"
    return f"exchange_id in (select exchange_id from {read} where accepted)"  # noqa: S608
