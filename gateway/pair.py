"""What one mirrored request showed about the candidate."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import orjson

OTHER = "other"
"""The slice of requests that belong to no slice of their own."""
UNFELT_SECONDS = 0.05
"""Twice a few milliseconds is nothing that a client feels, and often only noise."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What one model made of a request.

    Attributes:
        texts: Text of each choice, in order; tool calls may follow as JSON.
        failed: Whether there is no whole answer.
        ttft_seconds: Time to the first byte, where known.
        duration_seconds: Time to the last byte, where known.
    """

    texts: Sequence[str]
    failed: bool = False
    ttft_seconds: float | None = None
    duration_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """What one mirrored request showed.

    Attributes:
        agrees: Whether both models said the same; None if their answers were sampled, since then
            not even a model and its copy do.
        incumbent_valid: Whether every text of the incumbent's is a JSON object or array.
        candidate_valid: The same of the candidate.
        candidate_failed: Whether the candidate gave no whole answer.
        ttft_ratio: Candidate's time to first byte over the incumbent's, None if unknown; what is
            shorter than ``UNFELT_SECONDS`` counts as that.
        duration_ratio: The same of the last byte.
        slice: Kind of request, of a bounded set.
        is_spaced: Whether it stands for its moment: one pair a second or so does.
    """

    agrees: bool | None
    incumbent_valid: bool = False
    candidate_valid: bool = False
    candidate_failed: bool = False
    ttft_ratio: float | None = None
    duration_ratio: float | None = None
    slice: str = OTHER
    is_spaced: bool = True

    @property
    def outcome(self) -> Literal["failed", "sampled", "agrees", "differs"]:
        """The pair in a word."""
        if self.candidate_failed:
            return "failed"
        if self.agrees is None:
            return "sampled"
        return "agrees" if self.agrees else "differs"


def compare(
    incumbent: Reply, candidate: Reply, slice_name: str = OTHER, *, is_sampled: bool = False
) -> Pair:
    """Compare two replies to one request; JSON is compared by value, other text without its ends.

    An incumbent that failed shows nothing about the candidate: do not compare such a pair.
    """
    theirs, ours = ([_canonical(text) for text in reply.texts] for reply in (incumbent, candidate))
    return Pair(
        agrees=None if is_sampled else not candidate.failed and theirs == ours,
        incumbent_valid=is_structured(incumbent.texts),
        candidate_valid=is_structured(candidate.texts),
        candidate_failed=candidate.failed,
        ttft_ratio=_ratio(candidate.ttft_seconds, incumbent.ttft_seconds),
        duration_ratio=_ratio(candidate.duration_seconds, incumbent.duration_seconds),
        slice=slice_name,
    )


def is_structured(texts: Sequence[str]) -> bool:
    """Whether there are texts and each is a JSON object or array."""
    return bool(texts) and all(isinstance(_canonical(text), bytes) for text in texts)


def _canonical(text: str) -> bytes | str:
    """A JSON object or array as bytes that are equal for equal values, else the stripped text."""
    stripped = text.strip()
    if not stripped.startswith(("{", "[")):
        return stripped
    try:
        return orjson.dumps(orjson.loads(stripped), option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # the latter beyond 254 levels
        return stripped


def _ratio(candidate: float | None, incumbent: float | None) -> float | None:
    if candidate is None or incumbent is None or incumbent <= 0:
        return None
    return max(candidate, UNFELT_SECONDS) / max(incumbent, UNFELT_SECONDS)
