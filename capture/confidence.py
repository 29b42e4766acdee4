"""How sure a model was of an answer, by the log-probabilities its engine tells (pure).

One definition for who calibrates a threshold and who acts on it.
"""

from collections.abc import Mapping
from typing import Any, Literal

Signal = Literal["mean_logprob", "first_tokens", "distance"]
FIRST_TOKENS = 16  # of a stream: what is looked at before its client gets any of it


def token_logprobs(told: Mapping[str, Any]) -> list[float]:
    """Read a choice's ``logprobs``, as chat or as completions give them; in nats.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: If they are of another shape.
    """
    if "content" in told:
        return [float(token["logprob"]) for token in told["content"]]
    return [float(logprob) for logprob in told["token_logprobs"]]
