import json
import math

import pytest

from quant.compare.measures import (
    is_refusal,
    is_repetitive,
    is_structured,
    length_ratio,
    repeated_share,
    tool_calls,
)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry.",
        "Sorry, no.",
        " **I cannot** do this",
        "Unfortunately, I am unable to",
        "As an AI language model, I",
        "I am not able to say.",
    ],
)
def test_refusals_begin_as_refusals_do(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text", ["", "You cannot do that here.", "The sorry state of it", "I can do that", '{"a": 1}']
)
def test_other_answers_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_repetition_is_a_share_of_runs_that_were_there_before() -> None:
    assert repeated_share([]) == repeated_share([1, 2, 3]) == repeated_share(range(40)) == 0
    # 1 2 3 4 five times: 17 runs, four different ones.
    assert repeated_share([1, 2, 3, 4] * 5) == pytest.approx(13 / 17)


def test_circles_are_told_from_short_answers_and_from_lists() -> None:
    said_once = list(range(100, 140))

    assert is_repetitive([7] * 19)
    assert is_repetitive([*said_once, *[1, 2, 3] * 30])
    assert not is_repetitive([7] * 18)
    assert not is_repetitive(said_once)
    assert not is_repetitive([*said_once, 1, 2, 3, 1, 2, 3, 1, 2, 3])


def test_only_objects_and_lists_are_structured() -> None:
    assert is_structured('{"intent": "order"}')
    assert is_structured("[1, 2]")
    assert not is_structured("12")
    assert not is_structured("null")
    assert not is_structured("no")
    assert not is_structured("[" * 100_000)


def test_calls_are_compared_by_what_they_say() -> None:
    hermes = '<tool_call>\n{"name": "find", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    spaced = 'Well. <tool_call>{"arguments":{"b":2,"a":1},"name":"find"}</tool_call>'
    llama = '{"name": "find", "parameters": {"a": 1, "b": 2}}'
    as_text = json.dumps({"name": "find", "arguments": '{"a": 1, "b": 2}'})

    assert tool_calls(hermes) == tool_calls(spaced) == tool_calls(llama) == tool_calls(as_text)
    assert tool_calls(hermes.replace("2", "3")) != tool_calls(hermes)
    assert tool_calls(hermes + hermes) != tool_calls(hermes)
    assert tool_calls(f"[{llama}, {llama}]") == tool_calls(hermes + hermes)


def test_answers_without_calls_have_none() -> None:
    assert tool_calls("find") is None
    assert tool_calls('{"name": "Ada"}') is None
    assert tool_calls('[{"name": "find", "arguments": {}}, 3]') is None


def test_a_call_that_is_not_json_is_still_a_call() -> None:
    broken = "<tool_call>{oops</tool_call>"

    assert tool_calls(broken) is not None
    assert tool_calls(broken) != tool_calls("<tool_call>{oops 2</tool_call>")


def test_lengths_are_summed_before_they_are_divided() -> None:
    assert length_ratio([10, 0, 90], [5, 5, 40]) == 2.0
    assert math.isnan(length_ratio([1], [0]))
