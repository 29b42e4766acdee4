"""The simulation decides as the guards do, and the guards err as seldom as they say."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from gateway.guards import Guards, Stage, judge
from gateway.pair import Pair
from gateway.rollout import Rollout, transition
from tests.bench.guards.boundary import EVIDENCE, boundary
from tests.bench.guards.simulation import Policy, Truth, simulate

GUARDS = Guards(error_rate_max=0.1, min_pairs=60, min_canary=30)
MOST = 600
NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.of(GUARDS, (0.25,), MOST)


@pytest.mark.parametrize("guard", sorted(EVIDENCE))
def test_a_boundary_tells_what_the_guards_find(guard: str) -> None:
    stage: Stage = "canary" if guard.startswith("canary") else "shadow"
    limit = boundary(guard, stage, GUARDS, 2, 120)
    rng = np.random.default_rng(1)
    for trials in rng.integers(1, 121, 60).tolist():
        for good in {0, trials, int(rng.integers(0, trials + 1))}:
            verdict = judge(stage, EVIDENCE[guard](good, trials), GUARDS, 2)
            (found,) = {r.finding for r in verdict.reasons if r.guard == guard}
            counts = np.array(good, np.int32), np.array(trials, np.int32)
            assert limit.is_breached(*counts) == (found == "breached")
            assert found == "breached" or limit.is_passed(*counts) == (found == "passed")


def end_of(rng: np.random.Generator, truth: Truth) -> str:
    """One rollout in the gateway's own terms, pair by pair, judged after each."""
    rollout = Rollout("r", "support", "b", "c", (), NOW)
    for _ in range(MOST):
        number = int(rng.integers(0, len(truth.agreement)))
        failed = bool(rng.random() < truth.failing)
        agrees = bool(rng.random() < truth.agreement[number])
        ttft, duration = (2.0 if rng.random() < truth.slow else 1.0 for _ in range(2))
        pair = Pair(
            agrees and not failed,
            candidate_failed=failed,
            ttft_ratio=ttft,
            duration_ratio=duration,
            slice=f"kind {number}",
        )
        evidence = rollout.evidence.with_pair(pair)
        verdict = judge("shadow", evidence, GUARDS, 2)
        rollout = transition(replace(rollout, evidence=evidence), verdict, NOW)
        if rollout.state != "shadow":
            return rollout.state
    return "shadow"


@pytest.mark.parametrize("agreement", [(0.97, 0.97), (0.9, 0.9), (0.99, 0.6)])
def test_simulated_rollouts_end_as_real_ones_do(
    policy: Policy, agreement: tuple[float, ...]
) -> None:
    truth = Truth(agreement, failing=0.01, slow=0.3)
    shadow_only = Policy((), policy.shadow, policy.canary, MOST)
    rng = np.random.default_rng(2)

    simulated = simulate(shadow_only, truth, 400, rng)
    real = [end_of(rng, truth) for _ in range(40)]

    for state, number in (("live", simulated.live), ("rolled_back", simulated.rolled_back)):
        share = real.count(state) / len(real)
        assert share == pytest.approx(number / simulated.runs, abs=0.25)  # 3 standard errors of 40


def test_identical_models_are_rolled_back_in_at_most_a_hundredth_of_rollouts(
    policy: Policy,
) -> None:
    same = Truth((0.98,) * 20, failing=0.01, slow=0.3)

    outcome = simulate(policy, same, 500, np.random.default_rng(3))

    assert outcome.rolled_back <= 5
    assert outcome.live >= 490


def test_even_at_its_limits_a_candidate_is_seldom_rolled_back(policy: Policy) -> None:
    at_limits = Truth((1.0,) * 4, failing=0.1, slow=0.5)

    outcome = simulate(policy, at_limits, 500, np.random.default_rng(4))

    assert outcome.rolled_back <= 5


def test_a_slice_that_is_broken_is_found_in_nearly_every_rollout(policy: Policy) -> None:
    broken = Truth((*(0.98,) * 3, 0.4), failing=0.01)
    shadow_only = Policy((), policy.shadow, policy.canary, MOST)

    outcome = simulate(shadow_only, broken, 200, np.random.default_rng(5))

    assert outcome.rolled_back >= 190
    assert set(outcome.causes) <= {"slice_agreement", "agreement"}
