"""The gate before every engine: whose request it is, what it may say, how much it may take."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.bounds import Bounds, Json, check_bounds, check_fields, num_prompts
from gateway.endpoints import ENDPOINTS
from gateway.errors import RequestError
from gateway.exchange import Exchange, Request
from gateway.keys import ApiKey, KeyRing
from gateway.limits import Limiter, Reservation

TAG = "retort"
BYTES_PER_TOKEN = 4  # of a body, about; only until the engine has counted
BOUNDS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
ASSUMED_TOKENS = 1024  # of an answer, where the request sets no bound


@dataclass(slots=True)
class Gate:
    """Lets requests in.

    Attributes:
        bounds: How large a body's parts may be.
        ring: Every key; None lets everybody in, as is usual on one's own machine.
        limiter: What keys and tenants have left.
        requests: Requests by key that the state store does not know of yet.
        tokens: Tokens likewise.
    """

    bounds: Bounds = field(default_factory=Bounds)
    ring: KeyRing | None = None
    limiter: Limiter = field(default_factory=lambda: Limiter({}))
    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)

    def admit(self, headers: Mapping[bytes, bytes]) -> ApiKey | None:
        """Whose request it is; None where keys are not asked for.

        Raises:
            ApiKeyError: If it shows no valid key.
        """
        return None if self.ring is None else self.ring.find(headers)

    def check(self, key: ApiKey | None, parsed: Json) -> None:
        """See whether a body may go to an engine.

        Raises:
            RequestError: If it is too large somewhere, or says what this key must not.
        """
        check_bounds(parsed, self.bounds)
        if key is not None and not key.trusted:
            check_fields(parsed)
        tags = parsed.get("vllm_xargs")
        if isinstance(tags, dict) and TAG in tags:
            raise RequestError(f"vllm_xargs.{TAG} is set by the gateway; remove it", "vllm_xargs")

    def salt(self, key: ApiKey | None) -> str | None:
        """What keeps a tenant's cached prefixes its own."""
        return None if key is None or self.ring is None else self.ring.cache_salt(key.tenant)

    async def reserve(self, request: Request) -> Reservation | None:
        """Take what a request may need out of its quotas.

        Raises:
            RateLimitError: If a minute's quota is used up.
            BudgetError: If a budget is.
        """
        if request.key is None:
            return None
        return self.limiter.reserve(request.key, needed(request), time.monotonic())

    def settle(self, reservation: Reservation | None, exchange: Exchange | None = None) -> None:
        """Replace what was reserved by what the exchange took: nothing if there was none."""
        if reservation is None:
            return
        tokens = 0 if exchange is None else taken(exchange)
        self.settle_tokens(reservation, tokens, was_asked=exchange is not None)

    def settle_tokens(self, reservation: Reservation, tokens: int, *, was_asked: bool) -> None:
        """Replace what was reserved by so many tokens; an engine may have been asked."""
        self.limiter.settle(reservation, tokens)
        self.requests[reservation.key_id] += was_asked
        self.tokens[reservation.key_id] += tokens


def needed(request: Request) -> int:
    """Tokens that a request may take."""
    prompt, parsed = len(request.body) // BYTES_PER_TOKEN, request.parsed
    if not ENDPOINTS[request.endpoint].generates:
        return prompt
    longest = max(_number(parsed, name) for name in BOUNDS) or ASSUMED_TOKENS
    choices = max(1, _number(parsed, "n"), _number(parsed, "best_of"))
    return prompt + longest * choices * num_prompts(parsed.get("prompt"))


def _number(parsed: Json, name: str) -> int:
    """A number of the body, 0 if it is none or negative: nobody reserves less than nothing."""
    value = parsed.get(name)
    return max(0, int(value)) if isinstance(value, int | float) else 0


def taken(exchange: Exchange) -> int:
    """Tokens that an ended exchange took: as the engine counted, else about as many."""
    answer, request = exchange.answer, exchange.request
    if exchange.status == "rejected" or (exchange.http_status is None and not exchange.aborted):
        return 0
    if not ENDPOINTS[request.endpoint].generates:
        return answer.prompt_tokens or 0
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    if prompt is None:
        prompt = len(request.body) // BYTES_PER_TOKEN
    return prompt + (answer.num_pieces if completion is None else completion)
