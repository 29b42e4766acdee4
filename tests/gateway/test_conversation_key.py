"""A conversation stays with its model from its first turn on, at every endpoint."""

from typing import Any

import pytest

from gateway.body import conversation_key

USER, SECOND = {"role": "user", "content": "Hello"}, {"role": "user", "content": "And then?"}
SYSTEM = {"role": "system", "content": "Be brief."}
REPLY = {"role": "assistant", "content": "Hi"}
Turns = list[dict[str, Any]]


@pytest.mark.parametrize(
    "turns",
    [
        [{"messages": [USER]}, {"messages": [USER, REPLY, SECOND]}],
        [{"messages": [SYSTEM, USER]}, {"messages": [SYSTEM, USER, REPLY, SECOND]}],
        [
            {"system": "Be brief.", "messages": [USER]},
            {"system": "Be brief.", "messages": [USER, REPLY, SECOND]},
        ],
        [{"input": [USER]}, {"input": [USER, REPLY, SECOND]}],
        [
            {"input": "Hello", "instructions": "Be brief."},
            {"input": [USER, REPLY, SECOND], "instructions": "Be brief."},
        ],
        [{"user": "ann", "messages": [USER]}, {"user": "ann", "messages": [SECOND]}],
        [
            {"metadata": {"user_id": "ann"}, "messages": [USER]},
            {"metadata": {"user_id": "ann"}, "messages": [SECOND]},
        ],
    ],
)
def test_its_turns_have_one_key(turns: Turns) -> None:
    assert len({conversation_key(turn) for turn in turns}) == 1


@pytest.mark.parametrize(
    "openings",
    [
        [{"messages": [USER]}, {"messages": [SECOND]}],
        [{"messages": [SYSTEM, USER]}, {"messages": [USER]}],
        [{"system": "Be brief.", "messages": [USER]}, {"messages": [USER]}],
        [{"input": "Hello"}, {"input": "And then?"}],
        [{"input": "Hello"}, {"input": "Hello", "instructions": "Be brief."}],
        [{"prompt": "Hello"}, {"prompt": "And then?"}],
        [{"prompt": [1, 2]}, {"prompt": [1, 3]}],
        [{"metadata": {"topic": "x"}, "messages": [USER]}, {"messages": [SECOND]}],
    ],
)
def test_conversations_that_begin_otherwise_have_other_keys(openings: Turns) -> None:
    assert len({conversation_key(opening) for opening in openings}) == len(openings)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": "no list"},
        {"input": None},
        {"messages": [1, None]},
        {"metadata": []},
    ],
)
def test_a_body_that_says_nothing_has_a_key_all_the_same(body: dict[str, Any]) -> None:
    assert isinstance(conversation_key(body), str)


def test_bodies_that_say_nothing_are_spread_over_both_models() -> None:
    assert len({conversation_key({"previous_response_id": "resp_1"}) for _ in range(9)}) == 9
