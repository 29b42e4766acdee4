"""A student whose teacher answers what it is unsure of: what is asked and read (pure).

How sure a model was is the mean log-probability of its answer's tokens, or of a stream's first
ones, as ``retort compare --cascade`` calibrates both. The first is known when an answer is whole;
the second before a stream's client has any of it. How far the prompt is from what it was trained
on is known before it is asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from capture.confidence import FIRST_TOKENS, Signal, token_logprobs
from capture.familiarity import Familiarity, prompt_text
from capture.wire import STRANGE, is_empty
from gateway.bounds import num_prompts

Json = dict[str, Any]
Nats = Annotated[float, Field(le=0, allow_inf_nan=False)]

# What makes an answer tell its own tokens' log-probabilities, and no others.
ASKED: Mapping[str, Json] = {
    "/v1/chat/completions": {"logprobs": True, "top_logprobs": 0},
    "/v1/completions": {"logprobs": 0},
}
UNREADABLE = ("echo", "use_beam_search")  # requests whose answers do not tell


class CascadeConfig(BaseModel):
    """Who answers instead, and when.

    Attributes:
        route: The teacher's, of this gateway.
        threshold: Mean log-probability below which an answer in one piece is the teacher's, in
            nats; without it they are all the student's.
        stream_threshold: The same of the first tokens of a stream.
        distance: From what the student was trained on, in nats, beyond which a prompt is the
            teacher's, streamed or not; the student is not even asked.
        training: File that it is measured with, of ``retort compare --cascade``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    route: str
    threshold: Nats | None = None
    stream_threshold: Nats | None = None
    distance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    training: Path | None = None

    @model_validator(mode="after")
    def _one_signal(self) -> "CascadeConfig":
        if (self.distance is None) != (self.training is None):
            raise ValueError("distance and training go together: give both or neither")
        if self.threshold is self.stream_threshold is self.distance is None:
            raise ValueError("needs threshold, for whole answers, stream_threshold, or distance")
        return self

    def is_far(self, training: Familiarity, endpoint: str, parsed: Json) -> bool | None:
        """Whether a prompt is too unlike what the student was trained on.

        Returns:
            None if that is not weighed: nobody asks for it, or the request has no words.
        """
        if self.distance is None or endpoint not in ASKED:
            return None
        text = prompt_text(parsed)
        return training.distance(text) > self.distance if text else None

    def placed(self, home: Path) -> "CascadeConfig":
        """The same, its file taken from a folder."""
        training = None if self.training is None else home / self.training
        return self.model_copy(update={"training": training})


@dataclass(slots=True)
class Cascade:
    """One request's; listens to the student's answer as it passes.

    Attributes:
        route: The teacher's.
        signal: What is weighed.
        threshold: Least that it may be, in nats.
        num_choices: That the answer will have.
        fields: Added to what the student is asked; none if its client asked for them itself.
    """

    route: str
    signal: Signal
    threshold: float
    num_choices: int
    fields: Json
    _told: dict[int, list[float]] = field(default_factory=dict)
    _ended: set[int] = field(default_factory=set)
    _is_strange: bool = False  # something was said without log-probabilities

    @classmethod
    def of(cls, config: CascadeConfig | None, endpoint: str, parsed: Json) -> "Cascade | None":
        """Plan a request; None if its answer is not weighed, or would not tell how sure it was."""
        if config is None or endpoint not in ASKED or any(map(parsed.get, UNREADABLE)):
            return None
        is_stream = parsed.get("stream") is True
        threshold = config.stream_threshold if is_stream else config.threshold
        own = parsed.get("logprobs")
        has_own = own is not None and own is not False  # 0 asks completions for the token's own
        # top_logprobs without logprobs is wrong: for the engine to say.
        if threshold is None or ("top_logprobs" in parsed and not has_own):
            return None
        return cls(
            route=config.route,
            signal="first_tokens" if is_stream else "mean_logprob",
            threshold=threshold,
            num_choices=int(parsed.get("n") or 1) * num_prompts(parsed.get("prompt")),
            fields={} if has_own else ASKED[endpoint],
        )

    @property
    def hides(self) -> bool:
        """Whether something is to be taken out again."""
        return bool(self.fields)

    def take(self, document: Json) -> Json | None:
        """Listen to one document and change it to what the client asked for.

        Returns:
            The document; None if it carried nothing but what is taken out.
        """
        found = document.get("choices")
        items = found if isinstance(found, list) else []
        try:
            for item in items:
                self._hear(item)
        except STRANGE:
            self._is_strange = True
        if not self.hides:
            return document
        for item in items:
            if isinstance(item, dict) and "logprobs" in item:
                item["logprobs"] = None
        return None if is_empty(document) else document

    def is_sure(self, *, is_over: bool) -> bool | None:
        """Whether the student may answer; an answer that does not tell is not sure.

        Args:
            is_over: Whether all of the answer has been heard.

        Returns:
            None if that depends on what is still to come.
        """
        # No log-probability is above 0, so what is too low now stays so.
        lowest = FIRST_TOKENS * self.threshold
        is_stream = self.signal == "first_tokens"
        told = self._told.values()
        if self._is_strange or (is_stream and any(sum(each) < lowest for each in told)):
            return False
        if not is_over and not (is_stream and self._is_enough):
            return None
        return bool(told) and all(each and sum(each) >= len(each) * self.threshold for each in told)

    @property
    def _is_enough(self) -> bool:
        """Whether each choice has said its first tokens."""
        said = {index for index, told in self._told.items() if len(told) >= FIRST_TOKENS}
        return len(said | self._ended) >= self.num_choices

    def _hear(self, item: Json) -> None:
        index = item.get("index") or 0
        told = self._told.setdefault(index, [])
        logprobs = item.get("logprobs")
        if logprobs:
            told += token_logprobs(logprobs)
            if self.signal == "first_tokens":
                del told[FIRST_TOKENS:]
        else:
            self._is_strange |= _says_something(item)
        if item.get("finish_reason") is not None:
            self._ended.add(index)


def check_cascades(cascades: Mapping[str, CascadeConfig | None]) -> None:
    """See that every route's teacher is another route, which asks no third one.

    Raises:
        ValueError: If one is not.
    """
    for name, cascade in cascades.items():
        if cascade is None:
            continue
        if cascade.route not in cascades or cascade.route == name:
            others = ", ".join(sorted(cascades.keys() - {name})) or "none"
            raise ValueError(
                f"routes.{name}.cascade.route is {cascade.route!r}, expected another route; "
                f"there are: {others}"
            )
        if cascades[cascade.route] is not None:
            raise ValueError(
                f"routes.{name}.cascade.route is {cascade.route!r}, which has a cascade itself: "
                "name a route without one"
            )


def _says_something(item: Json) -> bool:
    """Whether a choice, or a piece of one, holds more than its author's role."""
    said = {**(item.get("delta") or item.get("message") or {}), "text": item.get("text")}
    return any(value for name, value in said.items() if name != "role")
