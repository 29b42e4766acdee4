"""What an ended exchange shows about the model that answered it."""

from collections import deque
from dataclasses import replace
from math import inf
from typing import Literal

from gateway.endpoints import ENDPOINTS
from gateway.evidence import Evidence, Outcome
from gateway.exchange import Exchange
from gateway.pair import Pair, Reply, compare, is_structured

RECENT = 500


def is_telling(exchange: Exchange) -> bool:
    """Whether a client's request says anything about the model."""
    is_answer = exchange.status not in {"aborted", "rejected"} and exchange.role != "shadow"
    return is_answer and ENDPOINTS[exchange.request.endpoint].generates


def outcome_of(exchange: Exchange, *, timed_from: float = -inf) -> Outcome:
    """How a client's request went.

    Args:
        exchange: Ended, by the incumbent or the candidate.
        timed_from: Monotonic seconds; how long it took counts only if it was asked later.
    """
    role: Literal["incumbent", "candidate"] = (
        "candidate" if exchange.role == "candidate" else "incumbent"
    )
    failed, valid = exchange.status == "failed", is_structured(exchange.answer.texts)
    asked, first, last = exchange.asked, exchange.first_byte, exchange.last_byte
    if asked is None or first is None or last is None or asked < timed_from:
        return Outcome(failed, valid, role)
    return Outcome(failed, valid, role, first - asked, last - asked)


def reply_of(exchange: Exchange) -> Reply:
    """One side of a pair."""
    answer = exchange.answer
    calls = [answer.tool_calls] if answer.tool_calls else []
    return Reply(
        texts=[*answer.texts, *calls],
        failed=exchange.status != "completed",
        ttft_seconds=exchange.ttft_seconds,
        duration_seconds=exchange.duration_seconds,
    )


def slice_of(exchange: Exchange) -> str:
    """Kind of request: endpoint and size of its body, doubling by doubling."""
    bits = len(exchange.request.body).bit_length()
    return f"{exchange.request.endpoint} {2 ** (bits - 1)} to {2**bits} bytes"


def pair_of(incumbent: Exchange, shadow: Exchange, *, is_spaced: bool) -> Pair:
    """What a mirrored request showed; whether it stands for its moment is for the caller to say."""
    is_sampled = incumbent.request.parsed.get("temperature") != 0  # engines sample unless told
    replies = reply_of(incumbent), reply_of(shadow)
    pair = compare(*replies, slice_of(incumbent), is_sampled=is_sampled)
    return replace(pair, is_spaced=is_spaced)


class Recent:
    """How a route's latest requests went while one deployment answered all of them; bounded."""

    def __init__(self) -> None:
        self._deployment = ""
        self._outcomes: deque[Outcome] = deque(maxlen=RECENT)

    def note(self, exchange: Exchange) -> None:
        """Take a client's ended request."""
        if exchange.role != "incumbent" or not is_telling(exchange):
            return
        if exchange.deployment.name != self._deployment:
            self._deployment = exchange.deployment.name
            self._outcomes.clear()
        self._outcomes.append(outcome_of(exchange))

    def evidence(self, deployment: str) -> Evidence:
        """What they show about a deployment; nothing, if another answered."""
        shown = Evidence()
        for outcome in self._outcomes if deployment == self._deployment else ():
            shown = shown.with_outcome(outcome)
        return shown
