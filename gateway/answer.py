"""What an engine's answer says: text, finish reasons, usage."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import orjson

Json = dict[str, object]


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
        has_ended: Whether it said so itself, as the newer endpoints do.
        num_pieces: Parts of texts and tool calls, in a stream about as many as tokens.
    """

    choices: dict[int, Choice] = field(default_factory=dict)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error_type: str | None = None
    is_whole: bool = False
    has_ended: bool = False
    num_pieces: int = 0

    def choice(self, index: int) -> Choice:
        """A completion, begun if it is new."""
        return self.choices.setdefault(index, Choice())

    def count(self, prompt_tokens: object, completion_tokens: object) -> None:
        """Take what the engine counted, where it is a number."""
        if isinstance(prompt_tokens, int):
            self.prompt_tokens = prompt_tokens
        if isinstance(completion_tokens, int):
            self.completion_tokens = completion_tokens

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


def dicts(items: object) -> Iterable[Json]:
    """Objects of a JSON list; nothing of anything else."""
    return (item for item in items if isinstance(item, dict)) if isinstance(items, list) else ()
