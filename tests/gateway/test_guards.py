"""Verdicts: what rolls back, what goes on, what waits, and that more of the same never flips."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.confidence import confidence_sequence
from gateway.evidence import Count, Evidence
from gateway.guards import NUM_GUARDS, Finding, Guards, Reason, Stage, Verdict, judge
from tests.gateway.strategies import EVIDENCE

GUARDS = Guards(error_rate_max=0.05)
SMALL = Guards(
    min_pairs=4,
    min_canary=4,
    slice_min_sample=3,
    min_breach_sample=2,
    confidence=0.5,
    false_rollback_max=0.9,
)
A_SLICE = ("slice_agreement", "a")
NONE = Count()
ALL_JSON = Count(200, 200)
STAGES: list[Stage] = ["shadow", "canary", "replacing", "watch", "live"]


def shadow(
    *,
    failed: int = 0,
    agreed: int = 200,
    pairs: int = 200,
    valid: Count = NONE,
    slices: dict[str, Count] | None = None,
    slow: int = 0,
) -> Evidence:
    """A stage of mirrored requests, each of its own moment; ``slow`` took four times as long."""
    times = {16: slow, 0: pairs - slow}
    return Evidence(
        failed=Count(failed, pairs),
        agreed=Count(agreed, pairs),
        valid=valid,
        ttft_ratios=times,
        spaced_ttft_ratios=times,
        slices=slices or {},
    )


def canary(failed: int, valid: int, answers: int, incumbent: Count = ALL_JSON) -> Evidence:
    """A stage of clients' requests."""
    return Evidence(
        candidate_failed=Count(failed, answers),
        candidate_valid=Count(valid, answers),
        incumbent_valid=incumbent,
    )


def judged(stage: Stage, evidence: Evidence, guards: Guards) -> Verdict:
    return judge(stage, evidence, guards, num_stages=2)


def finding(verdict: Verdict, guard: str, slice_name: str | None = None) -> Finding:
    return reason(verdict, guard, slice_name).finding


def reason(verdict: Verdict, guard: str, slice_name: str | None = None) -> Reason:
    (found,) = [r for r in verdict.reasons if (r.guard, r.slice) == (guard, slice_name)]
    return found


def test_a_candidate_that_proves_itself_advances() -> None:
    assert judged("shadow", shadow(agreed=196), GUARDS).action == "advance"


def test_nothing_seen_means_waiting() -> None:
    for stage in STAGES:
        assert judged(stage, Evidence(), GUARDS).action == "wait"


def test_shadow_waits_for_its_smallest_sample_however_good_it_looks() -> None:
    verdict = judged("shadow", shadow(pairs=199, agreed=199), GUARDS)

    assert verdict.action == "wait"
    assert finding(verdict, "agreement") == "too_few"


def test_shadow_waits_while_agreement_is_seen_but_not_proven() -> None:
    verdict = judged("shadow", shadow(agreed=184), GUARDS)

    agreement = reason(verdict, "agreement")
    assert verdict.action == "wait"
    assert agreement.finding == "open"
    assert agreement.observed == 0.92
    assert agreement.bound < agreement.threshold == 0.9
    assert agreement.sample == 200


def test_a_candidate_that_says_something_else_is_rolled_back_within_the_smallest_sample() -> None:
    assert judged("shadow", shadow(agreed=0, pairs=19), GUARDS).action == "wait"

    verdict = judged("shadow", shadow(agreed=0, pairs=20), GUARDS)

    (breach,) = verdict.breaches
    assert verdict.action == "rollback"
    assert (breach.guard, breach.observed, breach.sample) == ("agreement", 0.0, 20)
    assert breach.bound < breach.threshold


def test_failing_mirrored_requests_rolls_back() -> None:
    verdict = judged("shadow", shadow(failed=60), GUARDS)

    assert [breach.guard for breach in verdict.breaches] == ["error_rate"]
    assert verdict.breaches[0].bound > 0.05


def test_a_bad_slice_rolls_back_although_the_whole_is_good() -> None:
    slices = {"common": Count(960, 960), "rare": Count(8, 40)}

    verdict = judged("shadow", shadow(pairs=1000, agreed=968, slices=slices), GUARDS)

    assert [(breach.guard, breach.slice) for breach in verdict.breaches] == [
        ("slice_agreement", "rare")
    ]
    assert finding(verdict, "agreement") == "passed"


@given(st.integers(20, 300), st.floats(0, 1), st.floats(0.01, 0.99))
def test_a_breach_is_when_the_bounds_leave_nothing_on_the_right_side(
    pairs: int, share: float, threshold: float
) -> None:
    count = round(pairs * share)
    guards = Guards(error_rate_max=threshold, agreement_min=threshold)
    low, high = confidence_sequence(count, pairs, guards.false_rollback_max / 2 / NUM_GUARDS)

    verdict = judged("shadow", shadow(failed=count, agreed=count, pairs=pairs), guards)

    assert (finding(verdict, "error_rate") == "breached") == (low > threshold)
    assert (finding(verdict, "agreement") == "breached") == (high < threshold)


def test_a_slice_needs_more_proof_than_the_whole_since_it_is_one_of_many() -> None:
    few, more = Count(18, 40), Count(15, 40)
    whole = judged("shadow", shadow(agreed=18, pairs=40), Guards(agreement_min=0.8))

    assert finding(whole, "agreement") == "breached"
    assert finding(judged("shadow", shadow(slices={"a": few}), GUARDS), *A_SLICE) == "open"
    assert finding(judged("shadow", shadow(slices={"a": more}), GUARDS), *A_SLICE) == "breached"


def test_a_slice_below_its_threshold_without_proof_holds_shadow_up() -> None:
    slices = {"rare": Count(23, 30)}

    verdict = judged("shadow", shadow(slices=slices), GUARDS)

    assert verdict.action == "wait"
    assert finding(verdict, "slice_agreement", "rare") == "open"


def test_a_slice_with_too_little_data_is_listed_and_neither_passes_nor_breaches() -> None:
    verdict = judged("shadow", shadow(slices={"rare": Count(0, 29)}), GUARDS)

    assert verdict.action == "advance"
    assert finding(verdict, "slice_agreement", "rare") == "too_few"


def test_losing_the_format_rolls_back() -> None:
    verdict = judged("shadow", shadow(valid=Count(150, 200)), GUARDS)

    assert [breach.guard for breach in verdict.breaches] == ["format_validity"]


def test_prose_traffic_is_not_held_up_by_the_format_guard() -> None:
    verdict = judged("shadow", shadow(valid=Count(0, 0)), GUARDS)

    assert verdict.action == "advance"
    assert reason(verdict, "format_validity").observed is None


def test_a_slow_candidate_is_rolled_back_and_a_mostly_fast_one_is_not() -> None:
    assert judged("shadow", shadow(slow=80), GUARDS).action == "advance"
    assert judged("shadow", shadow(slow=110), GUARDS).action == "wait"
    assert [b.guard for b in judged("shadow", shadow(slow=140), GUARDS).breaches] == ["slow_ttft"]


def test_slow_moments_end_a_rollout_and_a_slow_crowd_holds_it_up() -> None:
    slow = shadow(slow=190)
    crowd = judged("shadow", replace(slow, spaced_ttft_ratios={16: 2}), GUARDS)
    moments = judged("shadow", replace(slow, spaced_ttft_ratios={16: 29, 0: 1}), GUARDS)

    assert crowd.action == "wait"
    assert finding(crowd, "slow_ttft") == "open"
    (breach,) = moments.breaches
    assert (breach.guard, breach.sample) == ("slow_ttft", 30)


def test_a_canary_step_ends_after_enough_good_answers() -> None:
    assert judged("canary", canary(0, 49, 49), GUARDS).action == "wait"
    assert judged("canary", canary(0, 50, 50), GUARDS).action == "advance"
    assert judged("canary", canary(3, 50, 50), GUARDS).action == "wait"


def test_a_canary_that_fails_clients_is_rolled_back() -> None:
    verdict = judged("canary", canary(12, 20, 20), GUARDS)

    assert [breach.guard for breach in verdict.breaches] == ["canary_error_rate"]


def test_a_canary_that_loses_the_format_its_incumbent_keeps_is_rolled_back() -> None:
    assert judged("canary", canary(0, 30, 50), GUARDS).action == "rollback"
    assert judged("canary", canary(0, 30, 50, Count(0, 200)), GUARDS).action == "advance"
    assert judged("canary", canary(0, 30, 50, Count(120, 200)), GUARDS).action == "advance"


def test_one_that_answers_everybody_has_to_prove_that_it_seldom_fails() -> None:
    assert judged("watch", canary(0, 199, 199), GUARDS).action == "wait"
    assert judged("watch", canary(0, 320, 320), Guards()).action == "advance"
    assert judged("watch", canary(0, 310, 310), Guards()).action == "wait"
    breached = judged("watch", canary(40, 40, 80), GUARDS).breaches
    assert [breach.guard for breach in breached] == ["canary_error_rate", "canary_format"]


def test_one_that_takes_longer_than_the_incumbent_took_is_rolled_back() -> None:
    before = Evidence(incumbent_ttfts={-8: 30, 0: 50, 24: 20}, incumbent_durations={0: 100})
    seen = before + canary(0, 400, 400)
    whole = Evidence(candidate_durations={0: 400})
    slow = seen + whole + Evidence(candidate_ttfts={4: 10, 12: 390})
    proven = slow + Evidence(spaced_candidate_ttfts={4: 1, 12: 29})
    fast = seen + whole + Evidence(candidate_ttfts={4: 390, 12: 10})
    untimed = seen + Evidence(candidate_ttfts={4: 29}, candidate_durations={0: 29})
    unknown = canary(0, 400, 400) + Evidence(candidate_ttfts={12: 400})

    assert [b.guard for b in judged("watch", proven, GUARDS).breaches] == ["canary_slow_ttft"]
    assert judged("watch", slow, GUARDS).action == "wait"
    assert judged("watch", fast, GUARDS).action == "advance"
    assert judged("watch", untimed, GUARDS).action == "wait"
    assert judged("watch", unknown, GUARDS).action == "advance"


def test_pairs_mirrored_during_canary_can_end_it_and_do_not_hold_it_up() -> None:
    good = canary(0, 50, 50) + shadow(pairs=3, agreed=3)
    bad = canary(0, 50, 50) + shadow(pairs=60, agreed=10)

    assert judged("canary", good, GUARDS).action == "advance"
    assert judged("canary", bad, GUARDS).action == "rollback"


def test_a_live_candidate_is_rolled_back_when_it_fails_and_else_left_alone() -> None:
    assert judged("live", canary(0, 500, 500), GUARDS).action == "wait"
    assert judged("live", canary(100, 500, 500), GUARDS).action == "rollback"


def test_a_reason_reads_as_a_sentence() -> None:
    verdict = judged("shadow", shadow(failed=60, slices={"rare": Count(60, 60)}), GUARDS)

    said = [str(found) for found in verdict.reasons]

    assert re.fullmatch(
        r"error_rate: 0\.300 of 200, surely at least 0\.170, expected at most 0\.050", said[0]
    )
    assert re.fullmatch(
        r"agreement: 1\.000 of 200, surely at least 0\.9\d\d, expected at least 0\.900", said[1]
    )
    assert said[2] == "format_validity: nothing seen yet"
    assert re.fullmatch(
        r"slow_ttft: 0\.000 of 200, surely at most 0\.0\d\d, expected at most 0\.500", said[3]
    )
    assert said[5].startswith("slice_agreement of slice rare: 1.000 of 60")


@settings(max_examples=300)
@given(EVIDENCE, st.integers(1, 6), st.sampled_from(STAGES))
def test_more_of_the_same_evidence_never_takes_a_rollback_back(
    evidence: Evidence, times: int, stage: Stage
) -> None:
    before = judged(stage, evidence, SMALL)
    for _ in range(times):
        evidence = evidence + evidence
    after = judged(stage, evidence, SMALL)

    assert before.action != "rollback" or after.action == "rollback"
    named = {(breach.guard, breach.slice) for breach in after.breaches}
    assert {(breach.guard, breach.slice) for breach in before.breaches} <= named


@given(EVIDENCE, st.sampled_from(STAGES))
def test_a_verdict_follows_from_its_own_reasons(evidence: Evidence, stage: Stage) -> None:
    verdict = judged(stage, evidence, SMALL)

    assert (verdict.action == "rollback") == bool(verdict.breaches)
    assert verdict == judged(stage, evidence, SMALL)
    for found in verdict.breaches:
        assert found.observed is not None
        side = -1 if found.limit == "ceiling" else 1
        assert side * found.observed <= side * found.bound < side * found.threshold


@given(EVIDENCE, st.sampled_from(STAGES))
def test_a_new_slice_never_takes_back_what_an_older_one_has_proven(
    evidence: Evidence, stage: Stage
) -> None:
    named = {r.slice for r in judged(stage, evidence, SMALL).breaches}

    grown = evidence + Evidence(slices={"new": Count(1, 1)})

    assert named <= {r.slice for r in judged(stage, grown, SMALL).breaches}


@pytest.mark.parametrize(
    "table",
    [
        {"error_rate_max": 0},
        {"agreement_min": 1},
        {"min_pairs": 10},
        {"min_canary": 10},
        {"confidence": 1},
        {"unknown": 1},
    ],
)
def test_guards_that_could_never_be_met_are_refused(table: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Guards.model_validate(table)


@pytest.mark.parametrize(("spaced", "least", "most"), [(1, 0, 0), (100, 20, 100)])
def test_stalls_that_all_feel_end_no_rollout_unless_every_pair_counts(
    spaced: int, least: int, most: int
) -> None:
    """A good candidate on a machine that stalls in a third of its seconds, at 100 pairs in each."""
    rng, num_ended = np.random.default_rng(0), 0
    for _ in range(100):
        seen, action = Evidence(), "wait"
        for _ in range(30):
            step = 16 if rng.random() < 1 / 3 else 0
            pairs = Evidence(failed=Count(0, 100), agreed=Count(100, 100), ttft_ratios={step: 100})
            seen += replace(pairs, spaced_ttft_ratios={step: spaced})
            action = judged("shadow", seen, GUARDS).action
            if action != "wait":
                break
        num_ended += action == "rollback"

    assert least <= num_ended <= most
