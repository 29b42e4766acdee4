"""Whether an answer is worth learning from: asked of a model, or of a function of the user's."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from openai import AsyncOpenAI

from capture.errors import ConfigError
from trainer.own_code import load_function, python_value
from trainer.prompts import Message

RUBRIC = """\
You judge an assistant's last answer. It is right if it does what was asked, in the form that was \
asked for, if nothing in it is false or made up, and if nothing that was asked for is missing. \
Answer with one word: yes if it is right, no if it is not."""
VERDICT = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
JUDGE_TOKENS = 512  # a word, behind whatever the model thinks first
ENOUGH = 0.5  # of a score
# A judge's own answers are no traffic to learn from.
UNCAPTURED = {"x-retort-capture": "off"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of an answer.

    Attributes:
        reason: Why it was not accepted.
        score: If the judge gave one.
    """

    is_accepted: bool
    reason: str | None = None
    score: float | None = None


Judge = Callable[[list[Message], str], Awaitable[Verdict]]


async def accept_all(_messages: list[Message], _answer: str) -> Verdict:
    """Have no objection."""
    return Verdict(is_accepted=True)


def model_judge(client: AsyncOpenAI, model: str) -> Judge:
    """Ask a model, by a short rubric, for yes or no."""

    async def judge(messages: list[Message], answer: str) -> Verdict:
        turns = [*messages, {"role": "assistant", "content": answer}]
        spoken = "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in turns)
        found = await client.chat.completions.create(
            model=model,
            messages=[
                {"role": "system", "content": RUBRIC},
                {"role": "user", "content": spoken},
            ],
            temperature=0,
            max_tokens=JUDGE_TOKENS,
            extra_headers=UNCAPTURED,
        )
        said = VERDICT.match((found.choices[0].message.content or "").rpartition("</think>")[2])
        if said is None:
            return Verdict(is_accepted=False, reason="the judge said neither yes nor no")
        is_right = said[1].lower() == "yes"
        return Verdict(is_right, None if is_right else "the judge said no")

    return judge


def function_judge(name: str) -> Judge:
    """Load ``FILE.py:function``, which takes messages and answer and gives a bool or a score.

    It is called in a thread, never twice at a time.

    Raises:
        ConfigError: If there is no such function.
    """
    if ":" not in name:
        raise ConfigError(f"--judge is {name!r}: expected none, self, or FILE.py:function")
    function = load_function(name, "--judge")
    turn = asyncio.Lock()

    async def judge(messages: list[Message], answer: str) -> Verdict:
        async with turn:
            found = await asyncio.to_thread(function, messages, answer)
        return _verdict(name, python_value(found))

    return judge


def _verdict(name: str, found: object) -> Verdict:
    if isinstance(found, bool):
        return Verdict(found, None if found else "the judge said no")
    if not isinstance(found, int | float):
        raise ConfigError(
            f"{name} returned {type(found).__name__}, expected True, False or a score of 0 to 1"
        )
    is_enough = found >= ENOUGH
    reason = None if is_enough else f"the judge's score is below {ENOUGH}"
    return Verdict(is_enough, reason, float(found))
