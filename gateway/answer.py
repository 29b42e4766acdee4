"""What an engine's answer says: text, finish reasons, usage, from the bytes that passed through.

Reads both forms of ``chat/completions`` and ``completions``: one JSON body, or server-sent
events. The bytes themselves are never changed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import orjson

Json = dict[str, object]
HIDDEN = ("reasoning", "reasoning_content", "refusal")


@dataclass(slots=True)
class Choice:
    """One completion as it was sent."""

    text: list[str] = field(default_factory=list)
    hidden: dict[str, list[str]] = field(default_factory=dict)
    tool_calls: list[object] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(slots=True)
class Answer:
    """Everything the log keeps of an answer.

    Attributes:
        choices: Completions by index.
        prompt_tokens: As the engine counted, where it said so.
        completion_tokens: As the engine counted, where it said so.
        error_type: Type of an error that the engine reported.
        is_whole: Whether the answer came to its proper end.
        num_pieces: Parts of texts and tool calls, in a stream about as many as tokens.
    """

    choices: dict[int, Choice] = field(default_factory=dict)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error_type: str | None = None
    is_whole: bool = False
    num_pieces: int = 0

    @property
    def texts(self) -> list[str]:
        """Text of each choice, in order."""
        return ["".join(self.choices[index].text) for index in sorted(self.choices)]

    @property
    def finish_reasons(self) -> list[str | None]:
        """Finish reason of each choice, in order."""
        return [self.choices[index].finish_reason for index in sorted(self.choices)]

    @property
    def hidden_texts(self) -> list[str]:
        """What was generated beside the text, such as reasoning; the log does not keep it."""
        return [
            "".join(part) for choice in self.choices.values() for part in choice.hidden.values()
        ]

    @property
    def calls(self) -> list[list[object]]:
        """Tool calls of each choice, in order; empty without any."""
        calls = [self.choices[index].tool_calls for index in sorted(self.choices)]
        return calls if any(calls) else []

    @property
    def tool_calls(self) -> str | None:
        """Tool calls of all choices as JSON, None without any."""
        return orjson.dumps(self.calls).decode() if self.calls else None


def read_answer(chunks: Sequence[bytes], *, stream: bool) -> Answer:
    """Parse an answer; whatever cannot be read is left out, and ``is_whole`` stays False."""
    body = b"".join(chunks)
    answer = Answer()
    documents = list(_events(body)) if stream else [body]
    for document in documents:
        _add(answer, document)
    ended = documents and documents[-1].strip() == b"[DONE]" if stream else bool(answer.choices)
    answer.is_whole = bool(ended) and answer.error_type is None
    return answer


def _events(body: bytes) -> Iterator[bytes]:
    """Data of each server-sent event."""
    for line in body.splitlines():
        if line.startswith(b"data:"):
            yield line[5:].strip()


def _add(answer: Answer, document: bytes) -> None:
    try:
        parsed = orjson.loads(document)
    except orjson.JSONDecodeError:
        return
    if not isinstance(parsed, dict):
        return
    error = parsed.get("error")
    if isinstance(error, dict):
        answer.error_type = str(error.get("type") or error.get("code") or "error")
    usage = parsed.get("usage")
    if isinstance(usage, dict):
        answer.prompt_tokens = usage.get("prompt_tokens")
        answer.completion_tokens = usage.get("completion_tokens")
    for item in parsed.get("choices") or ():
        _add_choice(answer, item)


def _add_choice(answer: Answer, item: Json) -> None:
    index = item.get("index")
    choice = answer.choices.setdefault(index if isinstance(index, int) else 0, Choice())
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
        for call in content.get("tool_calls") or ():
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
