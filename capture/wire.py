"""Rows from the ``logprobs`` of an OpenAI answer, where the engine has no tap; pure.

A request is asked for more than its client wanted; of the answer's documents (the body, or each
event of a stream) the distributions are kept and what the client did not ask for is taken out
again. Tokens are known by id if the server names them ``token_id:123``, as vLLM does, or by
their text, with a ``Spelling``; a choice with other names, or without its prompt's ids, cannot be
recorded. The numbers are taken for natural logprobs at temperature 1 (vLLM's ``raw_logprobs``,
its default); at most 20 are to be had, so a flat position keeps a larger tail than the tap leaves.

A server that names tokens by text does not name the one that ended an answer. Such an answer
lacks its last position, and is flagged incomplete.

Shape suffixes: N positions, K candidates.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from capture.adaptive import kept_sizes, tail_logprobs
from capture.rows import LogitRow
from capture.schema import Flag
from capture.spelling import Spelling

Json = dict[str, Any]
TOP = 20  # what servers give at most unless told otherwise
LOWEST = -9999.0  # vLLM's word for minus infinity
TOKEN = "token_id:"  # noqa: S105  a token's name, not a secret
CHAT = "/v1/chat/completions"
IDS: Json = {"return_tokens_as_token_ids": True, "return_token_ids": True}
MASKS = (
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("allowed_token_ids", "bad_words", "min_tokens", "logprob_token_ids"),
)
STRANGE = (AttributeError, KeyError, OverflowError, TypeError, ValueError)  # of JSON as it comes
BIASES = ("logit_bias", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True)
class WireRequest:
    """What a request is asked for beyond its client's wishes.

    Attributes:
        added: Fields to add to the body.
        hidden: Keys to empty in the answer.
        flags: What the request does to the logits beside sampling from them.
    """

    added: Json
    hidden: frozenset[str]
    flags: Flag

    @classmethod
    def of(cls, endpoint: str, parsed: Mapping[str, Any]) -> "WireRequest | None":
        """Plan a request; None if its answer could not be recorded.

        A client that asks for logprobs itself gets exactly those. They can be recorded if it
        asked for tokens as ids too.
        """
        own = parsed.get("logprobs")
        has_own = own is not None and own is not False  # 0 asks completions for the token's own
        if parsed.get("echo") or parsed.get("use_beam_search"):
            return None
        if has_own and not parsed.get("return_tokens_as_token_ids"):
            return None
        added: Json = {name: value for name, value in IDS.items() if not parsed.get(name)}
        if not has_own:
            is_chat = endpoint == CHAT
            added |= {"logprobs": True, "top_logprobs": TOP} if is_chat else {"logprobs": TOP}
        hidden = {"logprobs"} if "logprobs" in added else set()
        if "return_token_ids" in added:
            hidden |= {"token_ids", "prompt_token_ids"}
        return cls(added, frozenset(hidden), _flags(parsed))


@dataclass(frozen=True, slots=True)
class Origin:
    """What an answer's rows say of where they come from; see ``capture.schema``."""

    exchange_id: str
    day: str
    model_revision: str
    tokenizer_hash: str
    k_min: int
    k_max: int
    mass: float


@dataclass(slots=True)
class _Heard:
    """One choice so far: sampled ids, and the candidates of each position, likeliest first."""

    tokens: list[int] = field(default_factory=list)
    tops: list[list[tuple[float, int]]] = field(default_factory=list)
    prompt_ids: list[int] | None = None
    is_named: bool = True  # every token by an id that is sure
    has_ended: bool = False
    spelled: list[str] = field(default_factory=list)  # tokens that are named by their text
    text: list[str] = field(default_factory=list)  # the choice's, as far as tokens are
    is_stopped: bool = False  # by itself, or by a stop string

    @property
    def is_sure(self) -> bool:
        """Whether the tokens are known; those named by text have to spell the choice."""
        spells = not self.spelled or "".join(self.spelled) == "".join(self.text)
        return self.is_named and bool(self.tokens) and spells


@dataclass(slots=True)
class WireAnswer:
    """Listens to an answer's documents and takes out what only we asked for."""

    request: WireRequest
    spelling: Spelling | None = None
    _choices: dict[int, _Heard] = field(default_factory=dict)
    _prompt_ids: list[int] | None = None
    _num_counted: int | None = None  # completion tokens as the engine counts them
    _num_prompt: int | None = None  # prompt tokens likewise
    _is_strange: bool = False  # a document was not of the API's shape: passed on, not recorded

    def take(self, document: Json) -> Json | None:
        """Listen to one document and change it to what the client asked for.

        Returns:
            The document; None if it carried nothing but what is taken out.
        """
        found = document.get("choices")
        items = found if isinstance(found, list) else []
        try:
            self._hear(document, items)
        except STRANGE:
            self._is_strange = True
        parts = [part for part in (*items, document) if isinstance(part, dict)]
        for part in parts:
            self._hide(part)
        return None if self.hides and is_empty(document) else document

    @property
    def hides(self) -> bool:
        """Whether something is to be taken out again."""
        return bool(self.request.hidden)

    def _hear(self, document: Json, items: list[Json]) -> None:
        """Keep what a document says of distributions."""
        self._prompt_ids = document.get("prompt_token_ids") or self._prompt_ids
        usage = document.get("usage")
        if isinstance(usage, dict):
            self._num_counted = usage.get("completion_tokens")
            self._num_prompt = usage.get("prompt_tokens")
        for item in items:
            self._listen(item)

    def rows(self, origin: Origin) -> tuple[list[LogitRow], int]:
        """The choices that can be recorded, and how many cannot."""
        try:
            rows = [] if self._is_strange else self._rows(origin)
        except STRANGE:
            rows = []
        return rows, len(self._choices) - len(rows)

    def _rows(self, origin: Origin) -> list[LogitRow]:
        total = sum(len(choice.tokens) for choice in self._choices.values())
        is_whole = self._num_counted in (None, total)
        rows = []
        for index, choice in sorted(self._choices.items()):
            prompt_ids = choice.prompt_ids or self._prompt_ids
            if not choice.is_sure or not prompt_ids:
                continue
            flags = self.request.flags
            lacks_end = bool(choice.spelled) and choice.is_stopped
            if lacks_end or not (choice.has_ended and is_whole):
                flags |= Flag.INCOMPLETE
            rows.append(_row(origin, index, prompt_ids, choice, flags))
        return rows

    def _listen(self, item: Json) -> None:
        choice = self._choices.setdefault(item.get("index") or 0, _Heard())
        choice.prompt_ids = item.get("prompt_token_ids") or choice.prompt_ids
        choice.has_ended |= item.get("finish_reason") is not None
        choice.is_stopped |= item.get("finish_reason") == "stop"
        choice.text += _texts(item)
        for name, top in _positions(item.get("logprobs")):
            if self.spelling is not None and name in self.spelling.ids:
                choice.spelled.append(name)
                token, ids = self.spelling.position(name, top)
            else:
                token, ids = _named(name, top)
            if token is None or not ids:
                choice.is_named = False
                continue
            choice.tokens.append(token)
            choice.tops.append(sorted(ids, key=lambda entry: (-entry[0], entry[1])))

    @property
    def lacks_prompt(self) -> bool:
        """Whether tokens were named by text, and the prompt's ids are not known."""
        is_spelled = any(choice.spelled for choice in self._choices.values())
        return is_spelled and self._prompt_ids is None

    def tell_prompt(self, prompt_ids: list[int] | None) -> None:
        """Take the prompt's ids, if they are as many as the server counted."""
        if self._num_prompt in (None, len(prompt_ids or ())):
            self._prompt_ids = prompt_ids

    def _hide(self, part: Json) -> None:
        for name in self.request.hidden & part.keys():
            part[name] = None


def _positions(logprobs: Json | None) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Each position's token and candidates, in chat's form or that of completions."""
    if not logprobs:
        return
    if "tokens" in logprobs:
        for name, top in zip(logprobs["tokens"], logprobs["top_logprobs"] or [], strict=False):
            yield name, list((top or {}).items())
    for entry in logprobs.get("content") or ():
        top = entry.get("top_logprobs") or ()
        yield entry["token"], [(other["token"], other["logprob"]) for other in top]


def _named(name: str, top: list[tuple[str, float]]) -> tuple[int | None, list[tuple[float, int]]]:
    """A position whose tokens go by their ids; without candidates if one does not."""
    known = [(logprob, _id(other)) for other, logprob in top]
    ids = [(logprob, other) for logprob, other in known if other is not None]
    return _id(name), ids if len(ids) == len(known) else []


def _texts(item: Json) -> list[str]:
    """What a choice says, in a body's or a stream's form."""
    places = (item.get("message"), item.get("delta"), {"content": item.get("text")})
    found = [place.get("content") for place in places if isinstance(place, dict)]
    return [text for text in found if isinstance(text, str)]


def _id(name: str) -> int | None:
    number = name.removeprefix(TOKEN)
    return int(number) if number != name and number.isdigit() else None


def is_empty(document: Json) -> bool:
    """Whether a stream's document says nothing, sent only to carry logprobs."""
    items = document.get("choices")
    if not isinstance(items, list) or not items or document.get("usage"):
        return False
    return all(
        isinstance(item, dict) and item.get("delta") == {} and item.get("finish_reason") is None
        for item in items
    )


def _flags(parsed: Mapping[str, Any]) -> Flag:
    flags = Flag(0)
    form = parsed.get("response_format")
    has_form = isinstance(form, dict) and form.get("type") != "text"
    must_call = parsed.get("tool_choice") not in (None, "none", "auto")
    if has_form or must_call or any(parsed.get(name) for name in MASKS):
        flags |= Flag.MASKED
    if any(parsed.get(name) for name in BIASES) or parsed.get("repetition_penalty") not in (
        None,
        1,
    ):
        flags |= Flag.BIASED
    return flags


def _row(
    origin: Origin, index: int, prompt_ids: list[int], choice: _Heard, flags: Flag
) -> LogitRow:
    k_max = min(TOP, origin.k_max)
    tops = [[entry for entry in top[:k_max] if entry[0] > LOWEST] or top[:1] for top in choice.tops]
    length_N = np.array([len(top) for top in tops])
    is_known_NK = np.arange(length_N.max()) < length_N[:, None]
    logprobs_NK = np.full(is_known_NK.shape, -np.inf, np.float32)
    logprobs_NK[is_known_NK] = [logprob for top in tops for logprob, _ in top]
    ids_NK = np.zeros(is_known_NK.shape, np.int32)
    ids_NK[is_known_NK] = [token for top in tops for _, token in top]
    size_N = np.minimum(kept_sizes(logprobs_NK, k_min=origin.k_min, mass=origin.mass), length_N)
    is_kept_NK = np.arange(length_N.max()) < size_N[:, None]
    return LogitRow(
        exchange_id=origin.exchange_id,
        day=origin.day,
        choice=index,
        source="wire",
        model_revision=origin.model_revision,
        tokenizer_hash=origin.tokenizer_hash,
        prompt_ids=np.array(prompt_ids, np.int32),
        completion_ids=np.array(choice.tokens, np.int32),
        topk_size=size_N.astype(np.int16),
        topk_ids=ids_NK[is_kept_NK],
        topk_logprobs=logprobs_NK[is_kept_NK],
        tail_logprob=tail_logprobs(logprobs_NK, size_N.astype(np.int16)),
        tail_draws=np.empty(0, np.int32),
        flags=int(flags),
        k_max=k_max,
        mass=origin.mass,
    )
