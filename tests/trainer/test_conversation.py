import json
from typing import Any

import pytest

from trainer.conversation import conversation_of

USER = {"role": "user", "content": "hi"}


def test_messages_tools_and_options_are_read() -> None:
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    body = {"messages": [USER], "tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    found = conversation_of(json.dumps(body))

    assert found is not None
    assert (found.messages, found.tools) == ([USER], tools)
    assert found.options == {"enable_thinking": False}


def test_parts_and_arguments_are_what_a_template_takes() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    call = {"id": "1", "function": {"name": "look_up", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    found = conversation_of(json.dumps({"messages": messages}))

    assert found is not None
    assert found.messages[0]["content"] == "one\ntwo"
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "once upon"},
        {"messages": []},
        {"system": "be brief", "messages": [USER]},
        {"messages": [USER], "tools": [{"name": "look_up", "input_schema": {}}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    ],
)
def test_other_requests_are_no_conversation(body: dict[str, Any]) -> None:
    assert conversation_of(json.dumps(body)) is None
