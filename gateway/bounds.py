"""What a body may ask of an engine: sizes for everybody, fields for the untrusted (pure).

Engines take bodies that bring them down: a prompt list without end, ``n`` in the thousands, a
schema that takes minutes to compile. What is bounded here is refused before any engine sees it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import RequestError

Json = Mapping[str, object]
Positive = Annotated[int, Field(gt=0)]
COUNTED = ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens")
SCHEMAS = (
    *("tools", "functions", "response_format", "text", "structured_outputs"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)
ALLOWED = frozenset(
    (
        *("model", "messages", "prompt", "input", "instructions", "system", "suffix", "echo"),
        *("stream", "stream_options", "store", "metadata", "user", "safety_identifier"),
        *("temperature", "top_p", "top_k", "min_p", "seed", "n", "best_of", *COUNTED),
        *("stop", "stop_sequences", "stop_token_ids", "ignore_eos", "include_stop_str_in_output"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty"),
        *("logit_bias", "logprobs", "top_logprobs", "bad_words", "allowed_token_ids"),
        *("tool_choice", "parallel_tool_calls", "function_call", *SCHEMAS),
        *("reasoning", "reasoning_effort", "include_reasoning", "thinking", "verbosity"),
        *("encoding_format", "dimensions", "truncation", "include", "service_tier", "modalities"),
        *("prompt_cache_key", "skip_special_tokens", "spaces_between_special_tokens"),
        *("return_token_ids", "return_tokens_as_token_ids", "prediction", "output_config"),
        *("tokens", "return_token_strs", "add_special_tokens", "add_generation_prompt"),
        *("continue_final_message", "max_tool_calls"),
    )
)


class Bounds(BaseModel):
    """The ``[gateway.bounds]`` table.

    Attributes:
        max_depth: Lists and objects within one another.
        max_messages: Messages of a conversation, or items of ``input``.
        max_prompts: Prompts of one request.
        max_choices: ``n`` and ``best_of``.
        max_tokens: What ``max_tokens`` and its like may say.
        max_stop: Stop strings, and stop tokens.
        max_schema_bytes: JSON of tools, response format and structured output, each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_depth: Positive = 64
    max_messages: Positive = 4096
    max_prompts: Positive = 256
    max_choices: Positive = 16
    max_tokens: Positive = 131_072
    max_stop: Positive = 64
    max_schema_bytes: Positive = 65_536


def check_bounds(parsed: Json, bounds: Bounds) -> None:
    """Check everything that is bounded.

    Raises:
        RequestError: If something is larger; names it.
    """
    if is_deeper(parsed, bounds.max_depth):
        raise RequestError(f"the body nests deeper than max_depth ({bounds.max_depth})")
    for name, value in parsed.items():
        known = SIZES.get(name)
        if known is None or value is None:
            continue
        key, size_of = known
        size, limit = size_of(name, value), getattr(bounds, key)
        if size > limit:
            raise RequestError(f"{name} is {size}, more than {key} ({limit})", name)


def check_fields(parsed: Json) -> None:
    """Check what a request with an untrusted key says at all.

    Raises:
        RequestError: If it uses a field that is not in the list, or has media fetched from
            elsewhere; names it.
    """
    for name in parsed:
        if name not in ALLOWED:
            raise RequestError(f"{name} is not allowed with this key; remove it", name)
    messages = parsed.get("messages")
    for part in parts_of(messages if isinstance(messages, list) else []):
        for name, value in part.items():
            url = value.get("url") if isinstance(value, dict) else value
            if name.endswith("_url") and not str(url).startswith("data:"):
                raise RequestError(f"{name} must be a data: URL; nothing is fetched", "messages")


def parts_of(messages: list[object]) -> Iterator[Json]:
    """Parts of the messages' contents."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else []
        yield from (part for part in parts if isinstance(part, dict))


def is_deeper(value: object, depth: int) -> bool:
    """Whether lists and objects nest deeper than so."""
    level = [value]
    for _ in range(depth):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)  # type: ignore[attr-defined]
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return False
    return True


def number(name: str, value: object) -> int:
    """A field that must be a number.

    Raises:
        RequestError: If it is something else; engines read numbers out of strings.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} is {value!r}, expected a number", name)
    return int(min(value, 2**63))


def _length(_: str, value: object) -> int:
    return len(value) if isinstance(value, list) else 0


def num_prompts(value: object) -> int:
    """Prompts in a list; a list of token ids is one."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        return len(value)
    return 1


def _json_bytes(_: str, value: object) -> int:
    return len(orjson.dumps(value))


SizeOf = Callable[[str, object], int]
SIZES: Mapping[str, tuple[str, SizeOf]] = {
    **dict.fromkeys(("n", "best_of"), ("max_choices", number)),
    **dict.fromkeys(COUNTED, ("max_tokens", number)),
    **dict.fromkeys(("messages", "input"), ("max_messages", _length)),
    **dict.fromkeys(("stop", "stop_sequences", "stop_token_ids"), ("max_stop", _length)),
    "prompt": ("max_prompts", lambda _, value: num_prompts(value)),
    **dict.fromkeys(SCHEMAS, ("max_schema_bytes", _json_bytes)),
}
"""Fields that are bounded: the bound's key, and how their size is taken."""
