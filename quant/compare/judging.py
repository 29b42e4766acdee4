"""Which of two answers is better: asked of a model twice, each answer first once."""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openai import AsyncOpenAI, BadRequestError

from trainer.endpoint import check_models, endpoint_errors, open_async_endpoint
from trainer.judging import JUDGE_TOKENS, UNCAPTURED

RUBRIC = """\
You compare two answers of assistants to the same prompt. The better one does what was asked, in \
the form that was asked for, says nothing false or made up and leaves out nothing that was asked \
for; length and style alone make no answer better. Answer with one word: A if the first is better, \
B if the second is, same if neither is."""
WORD = re.compile(r"\W*(A|B|same)\b", re.IGNORECASE)
AT_A_TIME = 8
SCORES = {"a": 1.0, "b": -1.0, "same": 0.0}  # of the answer that stands first

Pair = tuple[str, str, str]  # prompt, the student's answer, the teacher's


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """Who judges.

    Attributes:
        url: Of a server that speaks OpenAI's API.
        model: Its name there.
        api_key: If the server wants one.
    """

    url: str
    model: str
    api_key: str | None = None


def check_judge(spec: JudgeSpec) -> None:
    """See that the judge is there, before anything is measured.

    Raises:
        ConfigError: If the server refuses the key or has no such model.
        EndpointError: If it does not answer.
    """
    asyncio.run(_check(spec))


def judge_pairs(
    spec: JudgeSpec, pairs: Sequence[Pair], advance: Callable[[], None]
) -> list[float | None]:
    """Judge every pair.

    Equal answers are not asked about.

    Returns:
        1 where the student's answer is better whichever stands first, -1 where the teacher's is,
        0 where they are equally good or the order decides; None where the judge said none of its
        three words, or refused the pair (400), as it does what is too long for it.

    Raises:
        ConfigError: If the server refuses the key or has no such model any more.
        EndpointError: If it does not answer.
    """
    return asyncio.run(_judge_all(spec, pairs, advance))


def settled(student_first: str, teacher_first: str) -> float | None:
    """What both of a judge's words say of the student's answer together."""
    first, second = (word_of(said) for said in (student_first, teacher_first))
    if first is None or second is None:
        return None
    # By one and the same place in both orders nothing is said of the answers.
    return first if first == -second else 0.0


def word_of(said: str) -> float | None:
    """The score of the answer that stands first; None if it is none of the three words."""
    found = WORD.match(said.rpartition("</think>")[2])
    return None if found is None else SCORES[found[1].lower()]


async def _check(spec: JudgeSpec) -> None:
    async with open_async_endpoint(spec.url, spec.api_key) as client:
        await check_models(client, spec.url, {spec.model})


async def _judge_all(
    spec: JudgeSpec, pairs: Sequence[Pair], advance: Callable[[], None]
) -> list[float | None]:
    turn = asyncio.Semaphore(AT_A_TIME)
    async with open_async_endpoint(spec.url, spec.api_key) as client:

        async def judge(pair: Pair) -> float | None:
            async with turn:
                with endpoint_errors(spec.url):
                    score = await _judge(client, spec.model, pair)
            advance()
            return score

        return list(await asyncio.gather(*map(judge, pairs)))


async def _judge(client: AsyncOpenAI, model: str, pair: Pair) -> float | None:
    prompt, student, teacher = pair
    if student == teacher:
        return 0.0
    try:
        said = [
            await _ask(client, model, prompt, *order)
            for order in ((student, teacher), (teacher, student))
        ]
    except BadRequestError:
        return None
    return settled(*said)


async def _ask(client: AsyncOpenAI, model: str, prompt: str, first: str, second: str) -> str:
    spoken = f"[prompt]\n{prompt}\n\n[A]\n{first}\n\n[B]\n{second}"
    found = await client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": RUBRIC}, {"role": "user", "content": spoken}],
        temperature=0,
        max_tokens=JUDGE_TOKENS,
        extra_headers=UNCAPTURED,
    )
    return found.choices[0].message.content or ""
