import contextlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bounds import Bounds, check_bounds, check_fields, is_deeper
from gateway.errors import RequestError

BOUNDS = Bounds(
    max_depth=8,
    max_messages=3,
    max_prompts=2,
    max_choices=4,
    max_tokens=100,
    max_stop=2,
    max_schema_bytes=200,
)
MESSAGE = {"role": "user", "content": "hi"}
LONG_TOOL = {"type": "function", "function": {"name": "f", "description": "x" * 200}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [MESSAGE] * 4}, "messages"),
        ({"input": ["a"] * 4}, "input"),
        ({"prompt": ["a"] * 3}, "prompt"),
        ({"prompt": [[1, 2]] * 3}, "prompt"),
        ({"n": 5}, "n"),
        ({"best_of": 5}, "best_of"),
        ({"n": "5"}, "n"),
        ({"n": True}, "n"),
        ({"n": 1e300}, "n"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_completion_tokens": 101}, "max_completion_tokens"),
        ({"max_tokens": "101"}, "max_tokens"),
        ({"min_tokens": 101}, "min_tokens"),
        ({"stop": ["a"] * 3}, "stop"),
        ({"stop_token_ids": [1] * 3}, "stop_token_ids"),
        ({"tools": [LONG_TOOL]}, "tools"),
        ({"response_format": {"schema": "x" * 200}}, "response_format"),
        ({"structured_outputs": {"regex": "(a|b)" * 100}}, "structured_outputs"),
    ],
)
def test_what_is_too_large_is_refused_by_name(body: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        check_bounds(body, BOUNDS)
    assert refused.value.param == param
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [MESSAGE] * 3, "n": 4, "max_tokens": 100, "stop": ["a", "b"]},
        {"prompt": list(range(1000))},
        {"prompt": "a" * 1000, "n": None, "stop": None, "max_tokens": 3.0},
        {"prompt": [], "stop": "a"},
        {"messages": {"not": "a list"}, "tools": []},
    ],
)
def test_what_is_not_is_not(body: dict[str, object]) -> None:
    check_bounds(body, BOUNDS)


def nested(depth: int) -> object:
    value: object = 0
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


@given(depth=st.integers(0, 40), limit=st.integers(1, 40))
def test_depth_counts_lists_and_objects(depth: int, limit: int) -> None:
    assert is_deeper({"a": nested(depth)}, limit) == (depth + 1 > limit)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
)
NAMES = st.sampled_from(
    ["model", "messages", "prompt", "n", "max_tokens", "stop", "tools", "input", "best_of", "x"]
)


@given(st.dictionaries(NAMES, JSON))
def test_any_body_is_taken_or_refused_and_nothing_else(body: dict[str, object]) -> None:
    body = orjson.loads(orjson.dumps(body))
    with contextlib.suppress(RequestError):
        check_bounds(body, BOUNDS)
    with contextlib.suppress(RequestError):
        check_fields(body)


@pytest.mark.parametrize(
    "field",
    [
        *("chat_template", "chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs"),
        *("kv_transfer_params", "vllm_xargs", "priority", "cache_salt", "prompt_logprobs"),
        *("request_id", "api_base", "extra_body", "user_config", "documents", "lora_request"),
    ],
)
def test_a_field_that_reaches_into_the_engine_never_passes_from_an_untrusted_key(
    field: str,
) -> None:
    with pytest.raises(RequestError, match=f"{field} is not allowed"):
        check_fields({"model": "m", "messages": [MESSAGE], field: {}})


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "file:///etc/passwd", "ftp://a"])
@pytest.mark.parametrize("name", ["image_url", "audio_url", "video_url"])
def test_no_media_is_fetched_for_an_untrusted_key(name: str, url: str) -> None:
    for value in (url, {"url": url}, {"url": None}):
        part = {"type": name, name: value}
        with pytest.raises(RequestError, match="nothing is fetched"):
            check_fields({"messages": [{"role": "user", "content": [part]}]})
    part = {"type": name, name: {"url": "data:image/png;base64,AAAA"}}
    check_fields({"messages": [{"role": "user", "content": [part]}]})
