"""The conversation that a logged request asked about, as chat templates take it."""

import json
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat template renders.

    Attributes:
        messages: Their content is text.
        tools: As OpenAI's API describes them.
        options: More of the template's arguments, such as ``enable_thinking``.
    """

    messages: list[Message]
    tools: list[Message] | None
    options: dict[str, Any]


def conversation_of(request: str) -> Conversation | None:
    """Read a request in the form of ``/v1/chat/completions``; None for any other.

    Content in parts of text is joined by line breaks, and the arguments of tool calls are parsed,
    as vLLM does before it renders them.

    Args:
        request: JSON.
    """
    body = json.loads(request)
    messages, tools = body.get("messages"), body.get("tools")
    is_chat = isinstance(messages, list) and messages and "system" not in body
    if not is_chat or not all(tool.get("type") == "function" for tool in tools or []):
        return None  # another API's, which says the same in its own way
    read = [_read(message) for message in messages]
    if None in read:
        return None
    options = body.get("chat_template_kwargs") or {}
    return Conversation([one for one in read if one is not None], tools, options)


def _read(message: Message) -> Message | None:
    """A message whose content is text; None if it holds anything else."""
    content = message.get("content")
    if isinstance(content, list):
        if any(part.get("type") != "text" for part in content):
            return None
        content = "\n".join(part["text"] for part in content)
    calls = message.get("tool_calls")
    more = {} if not calls else {"tool_calls": [_parsed(call) for call in calls]}
    return {**message, "content": content, **more}


def _parsed(call: Message) -> Message:
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    return {**call, "function": {**function, "arguments": arguments}}
