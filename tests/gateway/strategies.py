"""Evidence of every shape, for properties of what is built on it."""

from hypothesis import strategies as st

from gateway.evidence import Evidence, Outcome
from gateway.pair import Pair

RATIOS = st.none() | st.floats(0.001, 1000)
SECONDS = st.none() | st.floats(0, 1000)
SLICES = st.sampled_from(["short", "long", "rare", "other"])
PAIRS = st.builds(
    Pair,
    agrees=st.none() | st.booleans(),
    incumbent_valid=st.booleans(),
    candidate_valid=st.booleans(),
    candidate_failed=st.booleans(),
    ttft_ratio=RATIOS,
    duration_ratio=RATIOS,
    slice=SLICES,
)
OUTCOMES = st.builds(
    Outcome,
    failed=st.booleans(),
    valid=st.booleans(),
    role=st.sampled_from(["incumbent", "candidate"]),
    ttft_seconds=SECONDS,
    duration_seconds=SECONDS,
)


def gathered(pairs: list[Pair], outcomes: list[Outcome]) -> Evidence:
    """Add up a stage's pairs and outcomes one by one."""
    evidence = Evidence()
    for pair in pairs:
        evidence = evidence.with_pair(pair)
    for outcome in outcomes:
        evidence = evidence.with_outcome(outcome)
    return evidence


EVIDENCE = st.builds(gathered, st.lists(PAIRS, max_size=12), st.lists(OUTCOMES, max_size=12))
