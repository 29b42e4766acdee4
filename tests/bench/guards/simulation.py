"""Whole rollouts, many at once, looked at after every request, with the guards' real verdicts."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gateway.guards import Guards
from tests.bench.guards.boundary import Boundary, Ints, boundary

Bools = npt.NDArray[np.bool_]
PARTS = ("slow_ttft", "slow_duration")
WHOLE = ("error_rate", "agreement")
SLICE = "slice_agreement"
CANARY = "canary_error_rate"


@dataclass(frozen=True, slots=True)
class Truth:
    """What is so of a candidate.

    Attributes:
        agreement: Share of answers that are the incumbent's own, in each slice; all slices are
            equally large.
        failing: Share of requests that it fails.
        slow: Share of its answers that are slow beside the incumbent's.
    """

    agreement: tuple[float, ...]
    failing: float = 0.0
    slow: float = 0.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Guards with their boundaries, and the shares of traffic on the way.

    Attributes:
        steps: Canary steps, as configured.
        shadow: Boundaries in shadow, by guard.
        canary: The same in canary.
        most: Requests after which a stage is given up as undecided.
    """

    steps: tuple[float, ...]
    shadow: dict[str, Boundary]
    canary: dict[str, Boundary]
    most: int

    @classmethod
    def of(cls, guards: Guards, steps: tuple[float, ...], most: int) -> "Policy":
        """Ask the guards for their boundaries."""
        num_stages = 1 + len(steps)
        names = (*WHOLE, *PARTS, SLICE)
        shadow = {n: boundary(n, "shadow", guards, num_stages, most) for n in names}
        # A pair breaches in canary as it does in shadow; there it holds nothing up.
        canary = {CANARY: boundary(CANARY, "canary", guards, num_stages, most)}
        return cls(steps, shadow, {**shadow, **canary}, most)


@dataclass(slots=True)
class Outcome:
    """What became of the rollouts.

    Attributes:
        runs: Rollouts.
        rolled_back: Those rolled back.
        live: Those that went live.
        causes: Rollbacks by the first guard that was breached.
        requests: Clients' requests until each rollback.
        exposed: Of them, those that the candidate answered.
    """

    runs: int
    rolled_back: int = 0
    live: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    requests: list[int] = field(default_factory=list)
    exposed: list[int] = field(default_factory=list)


def simulate(policy: Policy, truth: Truth, runs: int, rng: np.random.Generator) -> Outcome:
    """Run rollouts of one candidate from shadow to their end."""
    outcome = Outcome(runs)
    seen, exposed = np.zeros(runs, np.int64), np.zeros(runs, np.int64)
    for share in (0.0, *policy.steps):
        drawn = _Drawn(truth, share, (len(seen), policy.most), rng)
        breaches = _breaches(policy, drawn)
        is_breached = np.logical_or.reduce(list(breaches.values()))
        is_passed = _is_passed(policy, drawn)
        ends = _first(is_breached | is_passed)
        rows, at = np.arange(len(ends)), np.minimum(ends, policy.most - 1)
        has_ended = ends < policy.most
        back = has_ended & is_breached[rows, at]
        seen += at + 1
        exposed += drawn.num_candidate[rows, at]
        for row in np.flatnonzero(back):
            name = next(n for n, breach in breaches.items() if breach[row, at[row]])
            outcome.causes[name] += 1
        outcome.rolled_back += int(back.sum())
        outcome.requests += seen[back].tolist()
        outcome.exposed += exposed[back].tolist()
        goes_on = has_ended & ~back
        seen, exposed = seen[goes_on], exposed[goes_on]
    outcome.live = len(seen)
    return outcome


class _Drawn:
    """One stage's requests, a row per rollout; every number counts from the stage's beginning."""

    def __init__(
        self, truth: Truth, share: float, shape: tuple[int, int], rng: np.random.Generator
    ) -> None:
        is_candidate = rng.random(shape) < share
        is_failed = rng.random(shape) < truth.failing
        is_pair = ~is_candidate
        self.is_canary = share > 0
        self.num_candidate = _counted(is_candidate)
        self.candidate_good = _counted(is_candidate & ~is_failed)
        self.num_pairs = _counted(is_pair)
        self.good = {"error_rate": _counted(is_pair & ~is_failed)}
        slices = rng.integers(0, len(truth.agreement), shape)
        agrees = (rng.random(shape) < np.array(truth.agreement)[slices]) & ~is_failed
        self.good["agreement"] = _counted(is_pair & agrees)
        answered = is_pair & ~is_failed
        self.num_answered = _counted(answered)
        for name in PARTS:
            self.good[name] = _counted(answered & (rng.random(shape) >= truth.slow))
        self.slices = [
            (_counted(agrees & is_here), _counted(is_here))
            for is_here in (is_pair & (slices == number) for number in range(len(truth.agreement)))
        ]

    def trials(self, name: str) -> Ints:
        """Trials of a guard on pairs."""
        return self.num_answered if name in PARTS else self.num_pairs


def _breaches(policy: Policy, drawn: _Drawn) -> dict[str, Bools]:
    """Where each guard ends the rollout."""
    of = policy.canary if drawn.is_canary else policy.shadow
    found = {
        name: of[name].is_breached(drawn.good[name], drawn.trials(name)) for name in WHOLE + PARTS
    }
    found[SLICE] = np.logical_or.reduce(
        [of[SLICE].is_breached(good, trials) for good, trials in drawn.slices]
    )
    if drawn.is_canary:
        found[CANARY] = of[CANARY].is_breached(drawn.candidate_good, drawn.num_candidate)
    return found


def _is_passed(policy: Policy, drawn: _Drawn) -> Bools:
    """Where nothing holds the stage up any more."""
    if drawn.is_canary:
        return policy.canary[CANARY].is_passed(drawn.candidate_good, drawn.num_candidate)
    of = policy.shadow
    proven = [of[name].is_passed(drawn.good[name], drawn.trials(name)) for name in WHOLE]
    parts = [(name, drawn.good[name], drawn.trials(name)) for name in PARTS]
    parts += [(SLICE, good, trials) for good, trials in drawn.slices]
    seen = [of[n].is_passed(good, trials) | of[n].is_few_N[trials] for n, good, trials in parts]
    passed: Bools = np.logical_and.reduce([*proven, *seen])
    return passed


def _counted(happened: Bools) -> Ints:
    return np.cumsum(happened, axis=1, dtype=np.int32)


def _first(happened: Bools) -> npt.NDArray[np.int64]:
    """Column of each row's first; the number of columns where there is none."""
    return np.where(happened.any(axis=1), happened.argmax(axis=1), happened.shape[1])


def trials_to_breach(
    limit: Boundary, good_share: float, runs: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Trials until one guard is breached, in each of so many runs; the most it knows if not."""
    most = len(limit.breached_N) - 1
    trials = np.arange(1, most + 1)
    found = []
    for _ in range(runs):
        good = np.cumsum(rng.random(most) < good_share, dtype=np.int32)
        is_breached = good <= limit.breached_N[trials]
        found.append(int(is_breached.argmax()) + 1 if is_breached.any() else most + 1)
    return np.array(found)
