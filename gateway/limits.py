"""Quotas that hold while requests run side by side: reserve first, settle with what it took (pure).

Time is given by the caller, in monotonic seconds. Nothing here waits, so within one event loop
nobody comes between a check and what it allows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.errors import BudgetError, RateLimitError
from gateway.keys import ApiKey, Quota

MINUTE = 60.0
NO_QUOTA = Quota()


@dataclass(slots=True)
class Bucket:
    """A quota per minute that refills evenly; a request may find it in debt."""

    per_minute: int
    level: float
    at: float

    def refill(self, now: float) -> None:
        """Add what has come in since."""
        gained = (now - self.at) * self.per_minute / MINUTE
        self.level = min(float(self.per_minute), self.level + gained)
        self.at = now

    def seconds_until(self, amount: float) -> float:
        """How long until so much is there; what is more than the whole waits for a full one."""
        missing = min(amount, self.per_minute) - self.level
        return max(0.0, missing * MINUTE / self.per_minute)


@dataclass(slots=True)
class Account:
    """What one key or tenant has left.

    Attributes:
        used: Tokens settled, ever.
        reserved: Tokens of requests under way.
    """

    quota: Quota = field(default_factory=Quota)
    requests: Bucket | None = None
    tokens: Bucket | None = None
    used: int = 0
    reserved: int = 0

    def keep_to(self, quota: Quota, now: float) -> None:
        """Take a quota; if it is another one, its minute begins unused."""
        if quota is self.quota:
            return
        before, self.quota = self.quota, quota
        if quota != before:
            self.requests = _bucket(quota.requests_per_minute, now)
            self.tokens = _bucket(quota.tokens_per_minute, now)

    def check(self, tokens: int, now: float) -> None:
        """See whether one more request of so many tokens is within the quota.

        Raises:
            RateLimitError: If a minute's quota is used up; says when to retry.
            BudgetError: If the budget does not hold so many tokens.
        """
        budget = self.quota.token_budget
        if budget is not None and self.used + self.reserved + tokens > budget:
            left = max(0, budget - self.used - self.reserved)
            raise BudgetError(
                f"{left} tokens of the budget are left, the request may take {tokens}; ask for "
                "less with max_tokens, or for a larger budget"
            )
        _check_bucket(self.requests, 1, "requests", now)
        _check_bucket(self.tokens, tokens, "tokens", now)

    def take(self, tokens: int) -> None:
        """Reserve what has been checked."""
        self.reserved += tokens
        if self.requests is not None:
            self.requests.level -= 1
        if self.tokens is not None:
            self.tokens.level -= tokens

    def settle(self, reserved: int, tokens: int) -> None:
        """Replace what was reserved by what it took."""
        self.reserved -= reserved
        self.used += tokens
        if self.tokens is not None:
            self.tokens.level += reserved - tokens


@dataclass(slots=True)
class Reservation:
    """What a request under way holds, of its key and of its tenant."""

    accounts: tuple[Account, ...]
    tokens: int
    key_id: str
    is_settled: bool = False


@dataclass(slots=True)
class Limiter:
    """Accounts of keys and tenants.

    Attributes:
        tenants: Quotas of tenants.
    """

    tenants: Mapping[str, Quota]
    _accounts: dict[tuple[str, str], Account] = field(default_factory=dict)

    def set_used(self, totals: Mapping[ApiKey, int], now: float) -> None:
        """Take note of the tokens that keys, and so their tenants, have used in all."""
        tenants: dict[str, int] = {}
        for key, used in totals.items():
            tenants[key.tenant] = tenants.get(key.tenant, 0) + used
            of_key, of_tenant = self._accounts_of(key, now)
            of_key.used, of_tenant.used = used, tenants[key.tenant]

    def reserve(self, key: ApiKey, tokens: int, now: float) -> Reservation:
        """Take one request and the tokens it may need out of every account, or out of none.

        Raises:
            RateLimitError: If a minute's quota is used up; says when to retry.
            BudgetError: If a budget does not hold so many tokens.
        """
        accounts = self._accounts_of(key, now)
        for account in accounts:
            account.check(tokens, now)
        for account in accounts:
            account.take(tokens)
        return Reservation(accounts, tokens, key.id)

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """Replace what was reserved by what it took; further calls do nothing."""
        if reservation.is_settled:
            return
        reservation.is_settled = True
        for account in reservation.accounts:
            account.settle(reservation.tokens, tokens)

    def _accounts_of(self, key: ApiKey, now: float) -> tuple[Account, Account]:
        of_key = self._account("key", key.id)
        of_tenant = self._account("tenant", key.tenant)
        of_key.keep_to(key.quota, now)
        of_tenant.keep_to(self.tenants.get(key.tenant, NO_QUOTA), now)
        return of_key, of_tenant

    def _account(self, kind: str, name: str) -> Account:
        account = self._accounts.get((kind, name))
        if account is None:
            account = self._accounts[kind, name] = Account()
        return account


def _bucket(per_minute: int | None, now: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, float(per_minute), now)


def _check_bucket(bucket: Bucket | None, amount: float, what: str, now: float) -> None:
    if bucket is None:
        return
    bucket.refill(now)
    seconds = bucket.seconds_until(amount)
    if seconds > 0:
        raise RateLimitError(
            f"{bucket.per_minute} {what} per minute are allowed; retry in {seconds:.1f} s", seconds
        )
