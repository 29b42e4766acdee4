"""Answers of ``/v1/responses`` and ``/v1/messages``, read into what the log keeps of any answer.

Their streams end with an event that holds, or follows, everything; what came before it counts
only where it does not come.
"""

from gateway.answer import Answer, Choice, Json, dicts

ENDED = ("response.completed", "response.incomplete", "response.failed")


def add_response(answer: Answer, document: Json) -> bool:
    """Take a document of ``/v1/responses``; whether it is one."""
    kind = document.get("type")
    if document.get("object") == "response":
        _add_whole_response(answer, document)
        return True
    if not isinstance(kind, str) or not kind.startswith("response."):
        return False
    response = document.get("response")
    if kind in ENDED and isinstance(response, dict):
        answer.choices.clear()
        _add_whole_response(answer, response)
    elif kind in {"response.output_text.delta", "response.reasoning_text.delta"}:
        answer.num_pieces += 1
        name = "reasoning" if "reasoning" in kind else None
        _add_text(answer.choice(0), document.get("delta"), name)
    return True


def add_message(answer: Answer, document: Json) -> bool:
    """Take a document of ``/v1/messages``; whether it is one."""
    kind = document.get("type")
    if kind == "message":
        _add_blocks(answer, document.get("content"))
        _add_message_end(answer, document, document.get("usage"))
        answer.has_ended = True
    elif kind == "message_start":
        message = document.get("message")
        usage = message.get("usage") if isinstance(message, dict) else None
        _add_message_end(answer, {}, usage)
    elif kind == "content_block_start":
        _add_blocks(answer, [document.get("content_block")])
    elif kind == "content_block_delta":
        _add_delta(answer, document.get("delta"))
    elif kind == "message_delta":
        delta = document.get("delta")
        _add_message_end(answer, delta if isinstance(delta, dict) else {}, document.get("usage"))
    elif kind == "message_stop":
        answer.has_ended = True
    else:
        return False
    return True


def _add_whole_response(answer: Answer, response: Json) -> None:
    choice = answer.choice(0)
    for item in dicts(response.get("output")):
        if item.get("type") == "function_call":
            choice.tool_calls.append(item)
        for part in dicts(item.get("content")):
            name = None if part.get("type") == "output_text" else str(part.get("type"))
            _add_text(choice, part.get("text"), name)
    status = response.get("status")
    choice.finish_reason = {"completed": "stop", "incomplete": "length"}.get(str(status))
    answer.has_ended = status in {"completed", "incomplete", "failed"}
    error = response.get("error")
    if isinstance(error, dict):
        answer.error_type = str(error.get("code") or "error")
    _add_usage(answer, response.get("usage"))


def _add_blocks(answer: Answer, blocks: object) -> None:
    choice = answer.choice(0)
    for block in dicts(blocks):
        if block.get("type") == "tool_use":
            choice.tool_calls.append({**block, "input": block.get("input") or {}})
        _add_text(choice, block.get("text"), None)
        _add_text(choice, block.get("thinking"), "reasoning")


def _add_delta(answer: Answer, delta: object) -> None:
    if not isinstance(delta, dict):
        return
    choice = answer.choice(0)
    answer.num_pieces += 1
    _add_text(choice, delta.get("text"), None)
    _add_text(choice, delta.get("thinking"), "reasoning")
    part = delta.get("partial_json")
    if isinstance(part, str) and choice.tool_calls and isinstance(choice.tool_calls[-1], dict):
        call = choice.tool_calls[-1]
        begun = call.get("input")
        call["input"] = (begun if isinstance(begun, str) else "") + part


def _add_message_end(answer: Answer, said: Json, usage: object) -> None:
    reason = said.get("stop_reason")
    if isinstance(reason, str):
        answer.choice(0).finish_reason = reason
    _add_usage(answer, usage)


def _add_usage(answer: Answer, usage: object) -> None:
    if isinstance(usage, dict):
        answer.count(usage.get("input_tokens"), usage.get("output_tokens"))


def _add_text(choice: Choice, text: object, name: str | None) -> None:
    if isinstance(text, str) and text:
        (choice.text if name is None else choice.hidden.setdefault(name, [])).append(text)
