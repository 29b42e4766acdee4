"""Ids for the words of a server that names tokens by their text, as llama.cpp's does.

Only a name that belongs to one token alone gives an id. The prompt, of which such a server gives
no ids at all, is rendered and read again as the model's own tokenizer does it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from capture.errors import ConfigError

Position = tuple[int | None, list[tuple[float, int]]]  # a token, and candidates by logprob
PART = "\ufffd"  # a tokenizer's word for bytes that are no whole character
UNKNOWN_TO_US = ("tools", "functions", "chat_template", "chat_template_kwargs", "documents")


@dataclass(frozen=True, slots=True)
class Spelling:
    """What a tokenizer's tokens look like in text.

    Attributes:
        ids: Of tokens that are whole characters, by their text.
        shared: Texts that a part of a character is called by too, its odd bytes left out.
        tokenizer: Reads text.
        template: Renders a chat; None if the folder has none.
        named: Special tokens that templates ask for.
    """

    ids: Mapping[str, int]
    shared: frozenset[str]
    tokenizer: Tokenizer
    template: Template | None
    named: Mapping[str, str]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a model's or tokenizer's folder.

        Raises:
            ConfigError: If it holds no tokenizer.json.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"{folder}: no tokenizer.json there; expected a tokenizer's folder")
        tokenizer = Tokenizer.from_file(str(path))
        special = tokenizer.get_added_tokens_decoder()
        ids: dict[str, int] = {}
        shared = set[str]()
        for number in tokenizer.get_vocab().values():
            text = "" if number in special else tokenizer.decode([number])
            whole = text.replace(PART, "")
            if whole == text and whole not in ids:
                ids[text] = number
            else:
                shared.add(whole)
        ids.pop("", None)
        settings = folder / "tokenizer_config.json"
        named = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        texts = {name: _text(named.get(name)) for name in ("bos_token", "eos_token")}
        return cls(ids, frozenset(shared), tokenizer, _template(folder, named), texts)

    def position(self, name: str, top: Sequence[tuple[str, float]]) -> Position:
        """The token of a name in ``ids``, and candidates up to the first that is not sure."""
        candidates: list[tuple[float, int]] = []
        for other, logprob in sorted(top, key=lambda entry: -entry[1]):
            if other not in self.ids or (other in self.shared and other != name):
                break
            candidates.append((logprob, self.ids[other]))
        return self.ids[name], candidates

    def prompt_ids(self, parsed: Mapping[str, Any]) -> list[int] | None:
        """Ids of a request's prompt; None if it holds what only its server can render."""
        if any(parsed.get(name) for name in UNKNOWN_TO_US):
            return None
        prompt, messages = parsed.get("prompt"), parsed.get("messages")
        if isinstance(prompt, str):
            return list(self.tokenizer.encode(prompt).ids)
        if self.template is None or not _is_plain(messages):
            return None
        try:
            text = self.template.render(
                messages=messages, add_generation_prompt=True, tools=None, **self.named
            )
        except (TemplateError, TypeError, ValueError):
            return None  # the server will have refused it too
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


def _template(folder: Path, settings: Mapping[str, Any]) -> Template | None:
    """A folder's chat template, in an environment like that of transformers."""
    path = folder / "chat_template.jinja"
    text = path.read_text(encoding="utf-8") if path.is_file() else settings.get("chat_template")
    if not isinstance(text, str):
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(text)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _is_plain(messages: object) -> bool:
    """Whether a chat holds text alone."""
    return isinstance(messages, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("content"), str)
        and not message.get("tool_calls")
        for message in messages
    )


def _text(token: object) -> str:
    """A special token as settings give it: its text, or an object that holds it."""
    if isinstance(token, dict):
        return str(token.get("content", ""))
    return token if isinstance(token, str) else ""
