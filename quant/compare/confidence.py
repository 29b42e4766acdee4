"""How sure a model was of its own answer, by the engine's log-probabilities (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log
from typing import Any, Literal

Signal = Literal["mean_logprob", "first_token"]
SIGNALS: dict[Signal, str] = {
    "mean_logprob": "the mean log-probability of its tokens",
    "first_token": "minus the entropy of its first token",
}
TOP = 5  # entries asked of each position


@dataclass(frozen=True, slots=True)
class Confidence:
    """In nats, 0 where it is certain, less where it is not.

    Attributes:
        mean_logprob: Of the answer's tokens: known when the answer is whole.
        first_token: Minus the entropy of the first one: known before it is sent.
    """

    mean_logprob: float
    first_token: float

    def of(self, signal: Signal) -> float:
        """One of both."""
        return self.mean_logprob if signal == "mean_logprob" else self.first_token


UNSURE = Confidence(-inf, -inf)  # of an answer that is not there, or was not asked about


def confidence_of(logprobs: Mapping[str, Any]) -> Confidence:
    """Read what ``/v1/completions`` says of one answer.

    Args:
        logprobs: With ``token_logprobs`` of the tokens and ``top_logprobs`` of each position.
    """
    tokens = logprobs["token_logprobs"]
    if not tokens:
        return UNSURE
    return Confidence(sum(tokens) / len(tokens), -entropy(logprobs["top_logprobs"][0].values()))


def entropy(logprobs: Sequence[float]) -> float:
    """Entropy in nats of some outcomes and, as one more, all others: at most the true one."""
    known = [exp(logprob) for logprob in logprobs]
    rest = 1.0 - sum(known)
    return sum(-share * log(share) for share in (*known, rest) if share > 0)
