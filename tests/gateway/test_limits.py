from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BudgetError, RateLimitError
from gateway.keys import ApiKey, Quota
from gateway.limits import Limiter, Reservation

NOW = datetime.now(UTC)


def key(quota: Quota, key_id: str = "k1", tenant: str = "acme") -> ApiKey:
    return ApiKey(key_id, tenant, b"", NOW, quota=quota)


def test_a_minute_of_requests_is_given_and_comes_back_evenly() -> None:
    asking, limiter = key(Quota(requests_per_minute=3)), Limiter({})
    for _ in range(3):
        limiter.reserve(asking, 10, now=0.0)

    with pytest.raises(RateLimitError, match="3 requests per minute") as refused:
        limiter.reserve(asking, 10, now=0.0)
    assert refused.value.retry_after_seconds == pytest.approx(20.0)
    with pytest.raises(RateLimitError):
        limiter.reserve(asking, 10, now=19.9)
    limiter.reserve(asking, 10, now=20.0)


def test_tokens_are_taken_when_a_request_begins_and_corrected_when_it_ends() -> None:
    asking, limiter = key(Quota(tokens_per_minute=100)), Limiter({})
    first = limiter.reserve(asking, 90, now=0.0)
    with pytest.raises(RateLimitError, match="100 tokens per minute"):
        limiter.reserve(asking, 20, now=0.0)
    limiter.settle(first, 10)
    second = limiter.reserve(asking, 90, now=0.0)
    limiter.settle(second, 190)  # longer than thought: the minute is in debt

    with pytest.raises(RateLimitError) as refused:
        limiter.reserve(asking, 1, now=0.0)
    assert refused.value.retry_after_seconds == pytest.approx(101 * 0.6)


def test_a_request_larger_than_a_minute_waits_for_a_whole_one() -> None:
    asking, limiter = key(Quota(tokens_per_minute=100)), Limiter({})
    limiter.reserve(asking, 1000, now=0.0)
    with pytest.raises(RateLimitError):
        limiter.reserve(asking, 1000, now=539.0)
    limiter.reserve(asking, 1000, now=601.0)


def test_keys_share_their_tenants_quota_and_nothing_else() -> None:
    limiter = Limiter({"acme": Quota(requests_per_minute=2)})
    limiter.reserve(key(Quota(), "k1"), 1, now=0.0)
    limiter.reserve(key(Quota(), "k2"), 1, now=0.0)

    with pytest.raises(RateLimitError):
        limiter.reserve(key(Quota(), "k3"), 1, now=0.0)
    limiter.reserve(key(Quota(), "k4", "others"), 1, now=0.0)


def test_a_refused_request_takes_nothing_from_anybody() -> None:
    limiter = Limiter({"acme": Quota(token_budget=10)})
    asking = key(Quota(requests_per_minute=1))
    with pytest.raises(BudgetError):
        limiter.reserve(asking, 11, now=0.0)
    limiter.reserve(asking, 10, now=0.0)


def test_what_was_used_before_counts_for_the_key_and_for_its_tenant() -> None:
    limiter = Limiter({"acme": Quota(token_budget=100)})
    one, other = key(Quota(token_budget=60), "k1"), key(Quota(), "k2")
    limiter.set_used({one: 50, other: 30}, now=0.0)

    with pytest.raises(BudgetError, match="10 tokens"):
        limiter.reserve(one, 11, now=0.0)
    with pytest.raises(BudgetError, match="20 tokens"):
        limiter.reserve(other, 21, now=0.0)


def test_another_quota_takes_effect_and_keeps_what_is_under_way() -> None:
    limiter = Limiter({})
    before = key(Quota(token_budget=100))
    under_way = limiter.reserve(before, 100, now=0.0)
    after = replace(before, quota=Quota(token_budget=150))
    with pytest.raises(BudgetError):
        limiter.reserve(after, 60, now=0.0)
    limiter.settle(under_way, 0)
    limiter.reserve(after, 150, now=0.0)


@given(
    budget=st.integers(1, 500),
    steps=st.lists(st.tuples(st.integers(0, 100), st.floats(0, 1), st.booleans()), max_size=60),
)
def test_a_budget_holds_in_whatever_order_requests_begin_and_end(
    budget: int, steps: list[tuple[int, float, bool]]
) -> None:
    asking, limiter = key(Quota(token_budget=budget)), Limiter({})
    under_way: list[Reservation] = []
    used = 0
    for tokens, share, begins in steps:
        if begins:
            try:
                under_way.append(limiter.reserve(asking, tokens, now=0.0))
            except BudgetError:
                assert used + sum(held.tokens for held in under_way) + tokens > budget
        elif under_way:
            ended = under_way.pop(0)
            limiter.settle(ended, int(ended.tokens * share))
            limiter.settle(ended, 10_000)  # once only
            used += int(ended.tokens * share)
        assert used + sum(held.tokens for held in under_way) <= budget
