"""How sure a model was of its own answer, by the engine's log-probabilities (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from capture.confidence import FIRST_TOKENS, Signal

SIGNALS: dict[Signal, str] = {
    "mean_logprob": "the mean log-probability of a whole answer",
    "first_tokens": f"the mean log-probability of a stream's first {FIRST_TOKENS} tokens",
    "distance": "minus the distance of the prompt from what was trained on",
}


@dataclass(frozen=True, slots=True)
class Confidence:
    """In nats, 0 where it is certain, less where it is not.

    Attributes:
        mean_logprob: Of the answer's tokens: known when the answer is whole.
        first_tokens: Of its first ones: known before a stream's client has any.
    """

    mean_logprob: float
    first_tokens: float


UNSURE = Confidence(-inf, -inf)  # of an answer that is not there, or was not asked about


def confidence_of(logprobs: Sequence[float]) -> Confidence:
    """What an answer's tokens say, in nats."""
    if not logprobs:
        return UNSURE
    first = logprobs[:FIRST_TOKENS]
    return Confidence(sum(logprobs) / len(logprobs), sum(first) / len(first))
