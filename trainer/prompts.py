"""Prompts from a file of chats, ``{"messages": [...]}`` a line, to be asked anew."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from capture.prompts import read_chats

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a file.

    Attributes:
        messages: Up to the answer, each with ``role`` and ``content``.
    """

    messages: tuple[tuple[str, str], ...]

    @property
    def chat(self) -> list[Message]:
        """The messages as OpenAI's API takes them."""
        return [{"role": role, "content": content} for role, content in self.messages]

    @property
    def digest(self) -> str:
        """SHA-256 of the messages."""
        return hashlib.sha256(json.dumps(self.messages).encode()).hexdigest()

    def answered(self, answer: str) -> str:
        """SHA-256 of the messages and an answer."""
        return hashlib.sha256(json.dumps([self.messages, answer]).encode()).hexdigest()


def read_prompts(path: Path) -> list[Prompt]:
    """Read a file, the same as the demo's; an answer at a chat's end is left out.

    Raises:
        ConfigError: If it is missing, empty, or a line is not a chat; with its number, without
            its words.
    """
    return read_chats(path, _read)


def _read(line: str) -> Prompt:
    said = tuple((turn["role"], turn["content"]) for turn in json.loads(line)["messages"])
    asked = said[:-1] if said and said[-1][0] == "assistant" else said
    if not asked or not all(isinstance(part, str) for turn in said for part in turn):
        raise TypeError
    return Prompt(asked)
