"""Evidence counts everything once, stays bounded, and is a value."""

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gateway.evidence import (
    MAX_SLICES,
    Count,
    Evidence,
    Outcome,
    slower_than,
    slower_than_before,
)
from gateway.pair import OTHER, Pair
from tests.gateway.strategies import EVIDENCE, OUTCOMES, PAIRS, gathered

JSON = TypeAdapter(Evidence)


def test_a_pair_is_counted_under_each_of_its_headings() -> None:
    pair = Pair(agrees=True, incumbent_valid=True, ttft_ratio=2.0, slice="rare")

    evidence = Evidence().with_pair(pair)

    assert evidence.agreed == Count(1, 1)
    assert evidence.failed == Count(0, 1)
    assert evidence.valid == Count(0, 1)
    assert evidence.slices == {"rare": Count(1, 1)}
    assert slower_than(1.5, evidence.ttft_ratios) == Count(1, 1)
    assert slower_than(1.5, evidence.duration_ratios) == Count(0, 0)


def test_a_failed_candidate_counts_against_it_and_shows_no_latency() -> None:
    pair = Pair(
        agrees=True,
        incumbent_valid=True,
        candidate_valid=True,
        candidate_failed=True,
        ttft_ratio=0.1,
        slice="rare",
    )

    evidence = Evidence().with_pair(pair)

    assert evidence.failed == Count(1, 1)
    assert evidence.agreed == evidence.valid == evidence.slices["rare"] == Count(0, 1)
    assert not evidence.ttft_ratios


def test_times_are_held_against_the_median_of_those_before() -> None:
    before = Evidence()
    for seconds in (0.001, 0.2, 0.2, 0.2, 30.0):
        before = before.with_outcome(Outcome(False, False, "incumbent", seconds, seconds))
    after = Evidence()
    for seconds in (0.01, 0.25, 0.5, 1.0):
        after = after.with_outcome(Outcome(False, False, "candidate", seconds, None))
    failed = after.with_outcome(Outcome(True, False, "candidate", 9.0, 9.0))

    for limit, slower in ((1.5, 2), (4.0, 1), (8.0, 0)):
        found = slower_than_before(limit, after.candidate_ttfts, before.incumbent_ttfts)
        assert found == Count(slower, 4)
    assert failed.candidate_ttfts == after.candidate_ttfts
    assert slower_than_before(1.5, {}, before.incumbent_durations) == Count()
    assert slower_than_before(1.5, after.candidate_ttfts, {}) == Count()


def test_sampled_answers_show_failures_and_latency_but_no_agreement() -> None:
    evidence = Evidence().with_pair(Pair(agrees=None, ttft_ratio=2.0, slice="rare"))

    assert evidence.failed == Count(0, 1)
    assert evidence.ttft_ratios == {8: 1}
    assert evidence.agreed == Count()
    assert not evidence.slices


def test_a_prose_answer_of_the_incumbent_asks_no_format_of_the_candidate() -> None:
    evidence = Evidence().with_pair(Pair(agrees=False, candidate_valid=True))

    assert evidence.valid == Count(0, 0)


def test_outcomes_are_kept_apart_by_who_answered() -> None:
    evidence = gathered(
        [],
        [
            Outcome(failed=False, valid=True, role="candidate"),
            Outcome(failed=True, valid=True, role="candidate"),
            Outcome(failed=False, valid=False, role="incumbent"),
        ],
    )

    assert (evidence.candidate_failed, evidence.candidate_valid) == (Count(1, 2), Count(1, 2))
    assert (evidence.incumbent_failed, evidence.incumbent_valid) == (Count(0, 1), Count(0, 1))


@given(st.lists(PAIRS, max_size=12), st.lists(OUTCOMES, max_size=12), st.integers(0, 12))
def test_evidence_of_two_parts_is_the_sum_of_theirs(
    pairs: list[Pair], outcomes: list[Outcome], cut: int
) -> None:
    whole = gathered(pairs, outcomes)

    assert gathered(pairs[:cut], outcomes[:cut]) + gathered(pairs[cut:], outcomes[cut:]) == whole


@given(EVIDENCE)
def test_json_and_back_is_identity(evidence: Evidence) -> None:
    assert JSON.validate_json(JSON.dump_json(evidence)) == evidence


@given(EVIDENCE, PAIRS)
def test_adding_changes_nothing_that_was_there(evidence: Evidence, pair: Pair) -> None:
    before = JSON.dump_json(evidence)

    evidence.with_pair(pair)

    assert JSON.dump_json(evidence) == before


@given(st.lists(st.integers(0, 99).map(str), max_size=120))
def test_slices_stay_bounded_and_every_pair_is_in_one(names: list[str]) -> None:
    evidence = gathered([Pair(agrees=True, slice=name) for name in names], [])

    assert len(evidence.slices) <= MAX_SLICES
    assert sum(count.trials for count in evidence.slices.values()) == len(names)
    assert len(set(names)) < MAX_SLICES or OTHER in evidence.slices


def test_a_slice_once_named_keeps_its_name_when_others_no_longer_fit() -> None:
    evidence = gathered([Pair(agrees=True, slice=f"s{n}") for n in range(MAX_SLICES + 5)], [])

    evidence = evidence.with_pair(Pair(agrees=False, slice="s0"))

    assert evidence.slices["s0"] == Count(1, 2)
    assert evidence.slices[OTHER].trials == 6


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=30), st.floats(1 / 128, 128))
def test_slow_pairs_are_those_above_the_limit_or_the_next_step(
    ratios: list[float], limit: float
) -> None:
    evidence = gathered([Pair(agrees=True, ttft_ratio=ratio) for ratio in ratios], [])

    slow = slower_than(limit, evidence.ttft_ratios)

    assert slow.trials == len(ratios)
    assert sum(ratio > limit * 1.0906 for ratio in ratios) <= slow.successes
    assert slow.successes <= sum(ratio > limit for ratio in ratios)


@given(st.lists(st.floats(0, 1e12), max_size=300))
def test_latency_counts_stay_bounded(ratios: list[float]) -> None:
    evidence = gathered([Pair(agrees=True, duration_ratio=ratio) for ratio in ratios], [])

    assert len(evidence.duration_ratios) <= 115
