"""Where the guards' findings change, asked of ``gateway.guards.judge`` itself.

A simulation that looks after every pair cannot call it a hundred million times. Each guard looks
at one count, and for each number of trials there is a largest count that breaches and a least one
that passes; both only grow with the trials. So asking at the two edges finds every verdict.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.evidence import Count, Evidence
from gateway.guards import Finding, Guards, Stage, judge

Ints = npt.NDArray[np.int32]
SLOW_STEP = 16  # a ratio of 4


def times(fast: int, number: int) -> dict[int, int]:
    """So many pairs, each of a moment of its own."""
    return {SLOW_STEP: number - fast, 0: fast}


EVIDENCE: dict[str, Callable[[int, int], Evidence]] = {
    "error_rate": lambda good, n: Evidence(failed=Count(n - good, n)),
    "agreement": lambda good, n: Evidence(agreed=Count(good, n), failed=Count(0, n)),
    "format_validity": lambda good, n: Evidence(valid=Count(good, n), failed=Count(0, n)),
    "slow_ttft": lambda good, n: Evidence(
        ttft_ratios=times(good, n), spaced_ttft_ratios=times(good, n), failed=Count(0, n)
    ),
    "slow_duration": lambda good, n: Evidence(
        duration_ratios=times(good, n), spaced_duration_ratios=times(good, n), failed=Count(0, n)
    ),
    "slice_agreement": lambda good, n: Evidence(slices={"a": Count(good, n)}, failed=Count(0, n)),
    "canary_error_rate": lambda good, n: Evidence(candidate_failed=Count(n - good, n)),
}


@dataclass(frozen=True, slots=True)
class Boundary:
    """One guard's findings, by trials from 0 to N.

    Attributes:
        breached_N: Largest number of good trials that breaches, -1 if none does.
        passed_N: Least number that passes; more than the trials if none does.
        is_few_N: Whether there are too few trials to pass, which need not hold a stage up.
    """

    breached_N: Ints
    passed_N: Ints
    is_few_N: npt.NDArray[np.bool_]

    def is_breached(self, good: Ints, trials: Ints) -> npt.NDArray[np.bool_]:
        """Whether these counts end the rollout."""
        found: npt.NDArray[np.bool_] = good <= self.breached_N[trials]
        return found

    def is_passed(self, good: Ints, trials: Ints) -> npt.NDArray[np.bool_]:
        """Whether they let the stage end, as far as this guard goes."""
        found: npt.NDArray[np.bool_] = good >= self.passed_N[trials]
        return found


def boundary(
    guard: str, stage: Stage, guards: Guards, num_stages: int, most_trials: int
) -> Boundary:
    """Ask the guards where their findings change, up to so many trials."""
    evidence = EVIDENCE[guard]

    def finding(good: int, trials: int) -> Finding:
        verdict = judge(stage, evidence(good, trials), guards, num_stages)
        return next(reason.finding for reason in verdict.reasons if reason.guard == guard)

    columns: dict[str, Any] = {"breached": [-1], "passed": [1], "few": [True]}
    worst, least = -1, 0
    for trials in range(1, most_trials + 1):
        while worst < trials and finding(worst + 1, trials) == "breached":
            worst += 1
        is_few = finding(trials, trials) == "too_few"
        while not is_few and least <= trials and finding(least, trials) != "passed":
            least += 1
        columns["breached"].append(worst)
        columns["passed"].append(trials + 1 if is_few else least)
        columns["few"].append(is_few)
    return Boundary(
        np.array(columns["breached"], np.int32),
        np.array(columns["passed"], np.int32),
        np.array(columns["few"], np.bool_),
    )
