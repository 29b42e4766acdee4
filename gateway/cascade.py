"""A student whose teacher answers what it is unsure of: what is asked and read (pure).

How sure a model was is the mean log-probability of its answer's tokens, as ``retort compare
--cascade`` calibrates it. It is known when the answer is whole, so only answers in one piece are
looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]

# What makes an answer tell its own tokens' log-probabilities, and no others.
ASKED: Mapping[str, Json] = {
    "/v1/chat/completions": {"logprobs": True, "top_logprobs": 0},
    "/v1/completions": {"logprobs": 0},
}
UNREADABLE = ("stream", "echo", "use_beam_search")  # requests whose answers do not tell
STRANGE = (AttributeError, KeyError, TypeError, ValueError)  # of JSON as it comes


class CascadeConfig(BaseModel):
    """Who answers instead, and when.

    Attributes:
        route: The teacher's, of this gateway.
        threshold: Mean log-probability below which an answer is the teacher's; in nats.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    route: str
    threshold: Annotated[float, Field(le=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Cascade:
    """One request's.

    Attributes:
        config: Of its route.
        fields: Added to what the student is asked; none if its client asked for them itself.
    """

    config: CascadeConfig
    fields: Json

    @classmethod
    def of(cls, config: CascadeConfig | None, endpoint: str, parsed: Json) -> "Cascade | None":
        """Plan a request; None if its answer would not tell how sure the student was."""
        is_told = endpoint in ASKED and not any(parsed.get(name) for name in UNREADABLE)
        if config is None or not is_told:
            return None
        own = parsed.get("logprobs")
        if own is not None and own is not False:  # 0 asks completions for the token's own
            return cls(config, {})
        if "top_logprobs" in parsed:  # wrong without logprobs: for the engine to say
            return None
        return cls(config, ASKED[endpoint])

    def is_sure(self, body: bytes) -> bool:
        """Whether the student's answer is good enough; one that does not tell is not."""
        sure = confidence(body)
        return sure is not None and sure >= self.config.threshold

    def shown(self, body: bytes) -> bytes:
        """An answer as its client asked for it."""
        if not self.fields:
            return body
        try:
            document = orjson.loads(body)
            choices = [{**choice, "logprobs": None} for choice in document["choices"]]
        except STRANGE:
            return body
        return orjson.dumps({**document, "choices": choices})


def confidence(body: bytes) -> float | None:
    """Return the mean log-probability of an answer's tokens, of its least sure choice.

    Args:
        body: JSON of ``/v1/chat/completions`` or ``/v1/completions``.

    Returns:
        None if a choice does not tell.
    """
    try:
        told = [_logprobs(choice["logprobs"]) for choice in orjson.loads(body)["choices"]]
        return min(sum(each) / len(each) for each in told)
    except (*STRANGE, ZeroDivisionError):
        return None


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


def _logprobs(told: Json) -> list[float]:
    if "content" in told:
        return [float(token["logprob"]) for token in told["content"]]
    return [float(logprob) for logprob in told["token_logprobs"]]
