"""What can be said of one answer, alone or beside the teacher's (pure)."""

import json
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydantic import JsonValue

REFUSAL = re.compile(
    r"^\W*((i am|i'm) (sorry|afraid|unable|not able)|sorry\b|(unfortunately,? )?i (can ?not|can't|"
    r"won't|will not|am unable to|am not able to)\b|as an ai\b)",
    re.IGNORECASE,
)
HERMES_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
NAMES, ARGUMENTS = ("name", "function"), ("arguments", "parameters")
NGRAM = 4
MIN_NGRAMS = 16  # a shorter answer cannot go round in circles
REPEATED_SHARE = 0.5


def is_refusal(text: str) -> bool:
    """Whether an answer begins as refusals in English do: sorry, I cannot, as an AI."""
    return REFUSAL.match(text.replace("\u2019", "'")) is not None


def repeated_share(token_ids: Sequence[int]) -> float:
    """Share of an answer's runs of four tokens that it holds a second time or more."""
    runs = list(zip(*(token_ids[start:] for start in range(NGRAM)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def is_repetitive(token_ids: Sequence[int]) -> bool:
    """Whether more than half of at least sixteen runs of four tokens are there already."""
    return len(token_ids) >= MIN_NGRAMS + NGRAM - 1 and repeated_share(token_ids) > REPEATED_SHARE


def is_structured(text: str) -> bool:
    """Whether an answer is a JSON object or list; a bare number is as likely a plain answer."""
    return isinstance(_parsed(text), dict | list)


def tool_calls(text: str) -> Counter[str] | None:
    """Names and arguments of the calls in an answer's text, in any order; None if there are none.

    Read are ``<tool_call>{...}</tool_call>`` (Hermes, Qwen) and answers that are nothing but one
    object, or a list of them, with ``name`` and ``arguments`` or ``parameters`` (Llama). A block
    that is not JSON is a call of its own, equal to no other text.
    """
    blocks = HERMES_CALL.findall(text)
    if blocks:
        return Counter(_call(_parsed(block)) or f"not JSON: {block}" for block in blocks)
    whole = _parsed(text)
    listed = whole if isinstance(whole, list) else [whole]
    calls = [call for call in map(_call, listed) if call is not None]
    return Counter(calls) if calls and len(calls) == len(listed) else None


def length_ratio(student_tokens: Sequence[int], teacher_tokens: Sequence[int]) -> float:
    """Sum of all answers' tokens over the teacher's; NaN if the teacher says nothing at all."""
    total = sum(teacher_tokens)
    return float(np.divide(sum(student_tokens), total)) if total else float("nan")


def _call(value: JsonValue) -> str | None:
    """A call in one spelling; None if it is none."""
    if not isinstance(value, dict):
        return None
    name = next((value[key] for key in NAMES if isinstance(value.get(key), str)), None)
    given = next((value[key] for key in ARGUMENTS if key in value), None)
    if name is None or given is None:
        return None
    given = _parsed(given) if isinstance(given, str) else given
    return json.dumps([name, given], sort_keys=True)


def _parsed(text: str) -> JsonValue:
    """What a text says as JSON; None if it is not JSON."""
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value
