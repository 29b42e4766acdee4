"""What of an exchange may be kept: whose word counts, and texts without what is redacted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import orjson

from capture.redaction import RedactConfig, Redactor
from gateway.answer import Answer, Json

Policy = Literal["off", "text", "full"]
WORDS: Mapping[bytes, Policy] = {b"on": "full", b"full": "full", b"text": "text"}
STRICTEST_FIRST: tuple[Policy, ...] = ("off", "text", "full")
HEADER = b"x-retort-capture"
# Fields that the engine does not turn into tokens: captured ids do not spell them.
UNSPELLED = ("user", "safety_identifier", "metadata", "prompt_cache_key")
UNREADABLE = "[token ids]"
PARAMS = (
    *("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "n", "seed"),
    *("stop", "frequency_penalty", "presence_penalty", "response_format", "tool_choice"),
)


def policy_of(route: Policy, key: Policy, headers: Mapping[bytes, bytes], parsed: Json) -> Policy:
    """The strictest of what the route, the key, the header and the body say.

    A header with a word that we do not know means ``off``: whoever sends it wants less, not more.
    """
    word = headers.get(HEADER, b"on").strip().lower()
    asked = "off" if parsed.get("store") is False else WORDS.get(word, "off")
    return min(route, key, asked, key=STRICTEST_FIRST.index)


@dataclass(frozen=True, slots=True)
class KeptText:
    """The columns of an exchange's row that hold its text.

    Attributes:
        is_redacted: Whether the answer held something that is not in them.
    """

    request: str = "null"
    params: str = "{}"
    response_text: list[str] = field(default_factory=list)
    tool_calls: str | None = None
    is_redacted: bool = False


@dataclass(frozen=True, slots=True)
class Keeping:
    """What one exchange, and its shadow, may leave behind.

    Attributes:
        policy: ``full`` keeps text and distributions, ``text`` only the text, ``off`` neither.
        redactor: What is replaced in every text.
        redacted: The request as it may be kept; None if that is the client's own body.
        has_secrets: Whether the tokens of its prompt would spell what was redacted.
    """

    policy: Policy = "full"
    redactor: Redactor = field(default_factory=lambda: Redactor(RedactConfig()))
    redacted: Json | None = None
    has_secrets: bool = False

    @classmethod
    def decide(cls, policy: Policy, redactor: Redactor, parsed: Json) -> "Keeping":
        """Look through a request, once."""
        if policy == "off" or not redactor.is_active:
            return cls(policy, redactor)
        redacted = {redactor.text(key): redactor.value(item) for key, item in parsed.items()}
        if holds_ids(parsed.get("prompt")):
            redacted["prompt"] = UNREADABLE
        return cls(policy, redactor, redacted, _spelled(redacted) != _spelled(parsed))

    @property
    def allows_capture(self) -> bool:
        """Whether the engine may record distributions."""
        return self.policy == "full" and not self.has_secrets

    def text(self, body: bytes, parsed: Json, answer: Answer) -> KeptText:
        """The text that may be written."""
        if self.policy == "off":
            return KeptText()
        asked = parsed if self.redacted is None else self.redacted
        request = body if self.redacted is None else orjson.dumps(asked)
        params = {key: asked[key] for key in PARAMS if key in asked}
        if not self.redactor.is_active:
            return KeptText(
                request=request.decode("utf-8", errors="replace"),
                params=orjson.dumps(params).decode(),
                response_text=answer.texts,
                tool_calls=answer.tool_calls,
            )
        texts = [self.redactor.text(text) for text in answer.texts]
        calls = answer.calls and self.redactor.value(answer.calls)
        hidden = [self.redactor.text(text) for text in answer.hidden_texts]
        before = (answer.texts, answer.calls, answer.hidden_texts)
        return KeptText(
            request=request.decode("utf-8", errors="replace"),
            params=orjson.dumps(params).decode(),
            response_text=texts,
            tool_calls=orjson.dumps(calls).decode() if calls else None,
            is_redacted=(texts, calls, hidden) != before,
        )


def holds_ids(prompt: object) -> bool:
    """Whether a prompt is given as token ids, in which no text can be looked for."""
    return isinstance(prompt, list) and any(
        isinstance(item, int) or holds_ids(item) for item in prompt
    )


def _spelled(parsed: Json) -> Json:
    return {key: item for key, item in parsed.items() if key not in UNSPELLED}
