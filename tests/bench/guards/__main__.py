"""``python -m tests.bench.guards``: error rates of a rollout's guards, and the pairs they need.

Writes ``bench/guards.json`` and prints it as two tables. Looks after every single request, more
often than a gateway does. Seeded: the same numbers on every machine.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gateway.confidence import confidence_sequence
from gateway.config import RolloutConfig
from gateway.guards import Guards
from tests.bench.guards.boundary import boundary
from tests.bench.guards.simulation import Outcome, Policy, Truth, simulate, trials_to_breach

SLICES = 20  # of 5 percent each
AT_ONCE = 100
MOST_REQUESTS = 9_000  # of a stage; a canary step of 1 percent takes about 5,000
SAME = Truth(agreement=(0.98,) * SLICES, failing=0.002, slow=0.2)
AT_THE_LIMITS = Truth(agreement=(0.9 / 0.98,) * SLICES, failing=0.02, slow=0.5)
BROKEN_SLICE = Truth(agreement=(*(0.98,) * (SLICES - 1), 0.58), failing=0.002, slow=0.2)
THOROUGH = Guards(min_pairs=1000)
OVERALL = Guards(agreement_min=0.97)
STRICT_SLICE = Guards(worst_slice_agreement_min=0.97)
HALF_STRICT_SLICE = Guards(worst_slice_agreement_min=0.93)
ROLLOUTS = (
    ("identical models", Guards(), SAME),
    ("every guard exactly at its limit", Guards(), AT_THE_LIMITS),
    ("40 points lost in a 5 % slice, 2 overall", Guards(), BROKEN_SLICE),
    ("the same, min_pairs = 1000", THOROUGH, BROKEN_SLICE),
)
DROPS = (
    ("40 points in a slice, limit 0.80", "slice_agreement", Guards(), 0.58, 2_000),
    ("10 points in a slice, limit 0.93", "slice_agreement", HALF_STRICT_SLICE, 0.88, 6_000),
    ("2 points in a slice, limit 0.97", "slice_agreement", STRICT_SLICE, 0.96, 40_000),
    ("2 points overall, limit 0.97", "agreement", OVERALL, 0.96, 30_000),
)


@dataclass(frozen=True, slots=True)
class Tried:
    """Many rollouts of one candidate.

    Attributes:
        rolled_back_at_most: Upper bound of that share, 95 percent confidence.
        requests_median: Clients' requests until a rollback.
        requests_95: Within which 95 percent of the rollbacks came.
        exposed_95: The same of answers by the candidate.
    """

    name: str
    runs: int
    rolled_back: float
    rolled_back_at_most: float
    live: float
    causes: dict[str, int]
    requests_median: float | None
    requests_95: float | None
    exposed_95: float | None


@dataclass(frozen=True, slots=True)
class Needed:
    """Pairs, of the slice or of all, until one guard is breached."""

    name: str
    runs: int
    caught: float
    median: float
    within_95: float


def tried(name: str, policy: Policy, truth: Truth, runs: int) -> Tried:
    """Run rollouts, some at a time."""
    rng = np.random.default_rng(0)
    total = Outcome(runs)
    for _ in range(runs // AT_ONCE):
        part = simulate(policy, truth, AT_ONCE, rng)
        total.rolled_back += part.rolled_back
        total.live += part.live
        total.causes += part.causes
        total.requests += part.requests
        total.exposed += part.exposed
    return Tried(
        name=name,
        runs=runs,
        rolled_back=total.rolled_back / runs,
        rolled_back_at_most=confidence_sequence(total.rolled_back, runs, 0.05)[1],
        live=total.live / runs,
        causes=dict(Counter(total.causes)),
        requests_median=percentile(total.requests, 50),
        requests_95=percentile(total.requests, 95),
        exposed_95=percentile(total.exposed, 95),
    )


def percentile(values: list[int], percent: float) -> float | None:
    """A percentile, None of nothing."""
    return float(np.percentile(values, percent)) if values else None


def all_tried(runs: int) -> Iterator[Tried]:
    """Whole rollouts."""
    steps = RolloutConfig().steps
    policies: dict[Guards, Policy] = {}
    for name, guards, truth in ROLLOUTS:
        if guards not in policies:
            policies[guards] = Policy.of(guards, steps, MOST_REQUESTS)
        yield tried(name, policies[guards], truth, runs)


def all_needed(runs: int) -> Iterator[Needed]:
    """How soon single guards find single faults."""
    num_stages = 1 + len(RolloutConfig().steps)
    for name, guard, guards, share, most in DROPS:
        limit = boundary(guard, "shadow", guards, num_stages, most)
        found = trials_to_breach(limit, share, runs, np.random.default_rng(0))
        yield Needed(
            name,
            runs,
            float((found <= most).mean()),
            float(np.percentile(found, 50)),
            float(np.percentile(found, 95)),
        )


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="Rollouts of each kind.")
    parser.add_argument("--out", type=Path, default=Path("bench/guards.json"))
    asked = parser.parse_args()
    print("| candidate | rolled back | at most | live | requests, median | 95 % | exposed, 95 % |")
    print("|---|---|---|---|---|---|---|")
    rollouts = []
    for one in all_tried(asked.runs):
        rollouts.append(asdict(one))
        ends = (one.requests_median, one.requests_95, one.exposed_95)
        shown = " | ".join("" if end is None else f"{end:,.0f}" for end in ends)
        shares = f"{one.rolled_back:.2%} | {one.rolled_back_at_most:.2%} | {one.live:.2%}"
        print(f"| {one.name} | {shares} | {shown} |", flush=True)
    print("\n| fault | found | trials, median | 95 % |\n|---|---|---|---|")
    needed = []
    for fault in all_needed(asked.runs // 4):
        needed.append(asdict(fault))
        print(
            f"| {fault.name} | {fault.caught:.1%} | {fault.median:,.0f} | {fault.within_95:,.0f} |",
            flush=True,
        )
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"rollouts": rollouts, "needed": needed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
