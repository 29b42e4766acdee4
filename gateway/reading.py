"""An engine's answer, read from the bytes that passed through; they are never changed.

Reads both forms of every endpoint: one JSON body, or server-sent events.
"""

from collections.abc import Iterator, Sequence

import orjson

from gateway.answer import Answer, Json, dicts
from gateway.forms import add_message, add_response

HIDDEN = ("reasoning", "reasoning_content", "refusal")


def read_answer(chunks: Sequence[bytes], *, stream: bool) -> Answer:
    """Parse an answer; whatever cannot be read is left out, and ``is_whole`` stays False."""
    body = b"".join(chunks)
    answer = Answer()
    documents = list(_events(body)) if stream else [body]
    for document in documents:
        _add(answer, document, stream=stream)
    is_done = bool(documents) and documents[-1].strip() == b"[DONE]"
    answer.is_whole = (answer.has_ended or is_done) and answer.error_type is None
    return answer


def _events(body: bytes) -> Iterator[bytes]:
    """Data of each server-sent event."""
    for line in body.splitlines():
        if line.startswith(b"data:"):
            yield line[5:].strip()


def _add(answer: Answer, document: bytes, *, stream: bool) -> None:
    try:
        parsed = orjson.loads(document)
    except orjson.JSONDecodeError:
        return
    if not isinstance(parsed, dict):
        return
    error = parsed.get("error")
    if isinstance(error, dict):
        answer.error_type = str(error.get("type") or error.get("code") or "error")
    if add_response(answer, parsed) or add_message(answer, parsed):
        return
    answer.has_ended = not stream
    usage = parsed.get("usage")
    if isinstance(usage, dict):
        answer.count(usage.get("prompt_tokens"), usage.get("completion_tokens"))
    for item in dicts(parsed.get("choices")):
        _add_choice(answer, item)


def _add_choice(answer: Answer, item: Json) -> None:
    index = item.get("index")
    choice = answer.choice(index if isinstance(index, int) else 0)
    content = item.get("message") or item.get("delta") or item
    answer.num_pieces += 1
    if isinstance(content, dict):
        text = content.get("content") or content.get("text")
        if isinstance(text, str):
            choice.text.append(text)
        for name in HIDDEN:
            part = content.get(name)
            if isinstance(part, str):
                choice.hidden.setdefault(name, []).append(part)
        for call in dicts(content.get("tool_calls")):
            _add_call(choice.tool_calls, call)
    reason = item.get("finish_reason")
    if isinstance(reason, str):
        choice.finish_reason = reason


def _add_call(calls: list[object], part: object) -> None:
    """Take one tool call, or the next piece of one that is streamed."""
    begun = next((call for call in calls if _is_same_call(call, part)), None)
    if not isinstance(begun, dict) or not isinstance(part, dict):
        calls.append(part)
        return
    function, more = begun.get("function"), part.get("function")
    if isinstance(function, dict) and isinstance(more, dict):
        joined = f"{function.get('arguments') or ''}{more.get('arguments') or ''}"
        named = {key: value for key, value in more.items() if value and key != "arguments"}
        begun["function"] = {**function, **named, "arguments": joined}


def _is_same_call(call: object, part: object) -> bool:
    if not isinstance(call, dict) or not isinstance(part, dict):
        return False
    return isinstance(part.get("index"), int) and call.get("index") == part["index"]
