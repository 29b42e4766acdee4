"""What a served model answers by itself to prompts of token ids, greedily."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from capture.confidence import token_logprobs
from capture.engine import Engine
from capture.errors import EngineError
from quant.compare.confidence import UNSURE, Confidence, confidence_of

AT_A_TIME = 8
TIMEOUT_SECONDS = 600.0

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        text: As a client gets it.
        token_ids: With the token that ended it, if one did.
        finish: ``stop``, ``length``, or ``no room`` where the prompt fills the model's context.
        confidence: Of the model in it, where that was asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish: str
    confidence: Confidence = UNSURE


NO_ROOM = Answer("", (), "no room")


def ask(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    context: int,
    advance: Callable[[], None],
    *,
    is_confidence_asked: bool = False,
) -> list[Answer]:
    """Let an engine answer every prompt with its likeliest tokens.

    Args:
        engine: A ready one.
        prompts: Token ids.
        max_tokens: Of the longest answer.
        context: Tokens that prompt and answer may have together.
        advance: Called after each answer.
        is_confidence_asked: Whether each answer tells how sure the model was.

    Raises:
        EngineError: If it fails; with the end of its log.
    """

    def one(client: httpx.Client, prompt: Sequence[int]) -> Answer:
        room = min(max_tokens, context - len(prompt))
        if room < 1:
            return NO_ROOM
        body: dict[str, Any] = {
            "prompt": list(prompt),
            "max_tokens": room,
            "return_token_ids": True,
        }
        if is_confidence_asked:
            body["logprobs"] = 0  # of each token that was chosen, and of no others
        choice = complete(client, engine, body)
        told = token_logprobs(choice["logprobs"]) if is_confidence_asked else []
        sure = confidence_of(told)
        return Answer(choice["text"], tuple(choice["token_ids"]), choice["finish_reason"], sure)

    return in_turn(engine, one, prompts, advance)


def complete(client: httpx.Client, engine: Engine, body: dict[str, Any]) -> dict[str, Any]:
    """The one choice of a greedy completion."""
    greedy = {"model": engine.spec.served_name, "temperature": 0, **body}
    answer = client.post("/v1/completions", json=greedy)
    answer.raise_for_status()
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def in_turn(
    engine: Engine,
    one: Callable[[httpx.Client, T], R],
    items: Sequence[T],
    advance: Callable[[], None],
) -> list[R]:
    """Do something with an engine for every item, some at a time; results in the items' order.

    Raises:
        EngineError: If it fails; with the end of its log.
    """

    def counted(item: T) -> R:
        result = one(client, item)
        advance()
        return result

    with (
        explained(engine),
        httpx.Client(base_url=engine.url, timeout=TIMEOUT_SECONDS, trust_env=False) as client,
        ThreadPoolExecutor(AT_A_TIME) as pool,
    ):
        return list(pool.map(counted, items))


@contextmanager
def explained(engine: Engine) -> Iterator[None]:
    """Say which engine failed, and how its log ends."""
    try:
        yield
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise EngineError(engine.explain(f"does not answer as expected ({error!r})")) from error
