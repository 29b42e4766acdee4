"""What a stage of a rollout has shown so far: bounded counters that only grow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, log2
from typing import Literal

from gateway.pair import OTHER, UNFELT_SECONDS, Pair

MAX_SLICES = 32
RATIO_STEPS = 8
"""Steps per doubling of a latency ratio."""
RATIO_LIMIT = 7 * RATIO_STEPS + 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request of a client's went while the candidate had a share of them.

    Attributes:
        failed: Whether there was no whole answer, for a cause on our side.
        valid: Whether every text is a JSON object or array.
        role: Who answered.
        ttft_seconds: From when its engine was asked to its first byte; None if it tells nothing.
        duration_seconds: The same to its last byte.
        is_spaced: Whether it stands for its moment, as with a pair.
    """

    failed: bool
    valid: bool
    role: Literal["incumbent", "candidate"]
    ttft_seconds: float | None = None
    duration_seconds: float | None = None
    is_spaced: bool = True


@dataclass(frozen=True, slots=True)
class Count:
    """How often something was so, among the times it could have been."""

    successes: int = 0
    trials: int = 0

    @property
    def share(self) -> float | None:
        """Successes per trial, None without trials."""
        return self.successes / self.trials if self.trials else None

    def __add__(self, other: "Count") -> "Count":
        return Count(self.successes + other.successes, self.trials + other.trials)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Counts over the pairs and outcomes of one stage; a value, so adding gives a new one.

    Requests of one moment share its fate: an engine that stalls, or a busy machine, makes all of
    them slow. So times are counted twice, of all and of those that stand for their moment.

    Attributes:
        failed: Pairs that the candidate failed, of all pairs.
        agreed: Pairs that agree, of those that were not sampled; a failed one does not.
        valid: Pairs with a valid candidate, of those with a valid incumbent.
        ttft_ratios: Pairs by latency ratio, in steps of ``2 ** (1 / RATIO_STEPS)``.
        duration_ratios: The same of the whole answer.
        spaced_ttft_ratios: As ``ttft_ratios``, of the pairs that stand for their moment.
        spaced_duration_ratios: As ``duration_ratios``, of the same.
        slices: ``agreed`` by slice, at most ``MAX_SLICES`` of them; later ones count as "other".
        candidate_failed: Clients' requests that the candidate failed, of those it was given.
        candidate_valid: Its valid answers, of the same.
        incumbent_failed: As for the candidate.
        incumbent_valid: As for the candidate.
        candidate_ttfts: Its whole answers by time to the first byte, in the same steps of a second.
        candidate_durations: The same of the last byte.
        spaced_candidate_ttfts: As ``candidate_ttfts``, of the answers that stand for their moment.
        spaced_candidate_durations: As ``candidate_durations``, of the same.
        incumbent_ttfts: As for the candidate.
        incumbent_durations: As for the candidate.
    """

    failed: Count = Count()
    agreed: Count = Count()
    valid: Count = Count()
    ttft_ratios: Mapping[int, int] = field(default_factory=dict)
    duration_ratios: Mapping[int, int] = field(default_factory=dict)
    spaced_ttft_ratios: Mapping[int, int] = field(default_factory=dict)
    spaced_duration_ratios: Mapping[int, int] = field(default_factory=dict)
    slices: Mapping[str, Count] = field(default_factory=dict)
    candidate_failed: Count = Count()
    candidate_valid: Count = Count()
    incumbent_failed: Count = Count()
    incumbent_valid: Count = Count()
    candidate_ttfts: Mapping[int, int] = field(default_factory=dict)
    candidate_durations: Mapping[int, int] = field(default_factory=dict)
    spaced_candidate_ttfts: Mapping[int, int] = field(default_factory=dict)
    spaced_candidate_durations: Mapping[int, int] = field(default_factory=dict)
    incumbent_ttfts: Mapping[int, int] = field(default_factory=dict)
    incumbent_durations: Mapping[int, int] = field(default_factory=dict)

    def with_pair(self, pair: Pair) -> "Evidence":
        """Add one mirrored request."""
        agreed = Count()
        if pair.agrees is not None:
            agreed = Count(int(pair.agrees and not pair.candidate_failed), 1)
        valid = Count(int(pair.candidate_valid and not pair.candidate_failed), 1)
        ttfts = _one_step(None if pair.candidate_failed else pair.ttft_ratio)
        durations = _one_step(None if pair.candidate_failed else pair.duration_ratio)
        return self + Evidence(
            failed=Count(int(pair.candidate_failed), 1),
            agreed=agreed,
            valid=valid if pair.incumbent_valid else Count(),
            ttft_ratios=ttfts,
            duration_ratios=durations,
            spaced_ttft_ratios=ttfts if pair.is_spaced else {},
            spaced_duration_ratios=durations if pair.is_spaced else {},
            slices={pair.slice: agreed} if agreed.trials else {},
        )

    def with_outcome(self, outcome: Outcome) -> "Evidence":
        """Add one request of a client's."""
        failed = Count(int(outcome.failed), 1)
        valid = Count(int(outcome.valid and not outcome.failed), 1)
        ttfts = _one_step(None if outcome.failed else _felt(outcome.ttft_seconds))
        durations = _one_step(None if outcome.failed else _felt(outcome.duration_seconds))
        if outcome.role == "candidate":
            return self + Evidence(
                candidate_failed=failed,
                candidate_valid=valid,
                candidate_ttfts=ttfts,
                candidate_durations=durations,
                spaced_candidate_ttfts=ttfts if outcome.is_spaced else {},
                spaced_candidate_durations=durations if outcome.is_spaced else {},
            )
        return self + Evidence(
            incumbent_failed=failed,
            incumbent_valid=valid,
            incumbent_ttfts=ttfts,
            incumbent_durations=durations,
        )

    def __add__(self, other: "Evidence") -> "Evidence":
        return Evidence(
            failed=self.failed + other.failed,
            agreed=self.agreed + other.agreed,
            valid=self.valid + other.valid,
            ttft_ratios=_sum_steps(self.ttft_ratios, other.ttft_ratios),
            duration_ratios=_sum_steps(self.duration_ratios, other.duration_ratios),
            spaced_ttft_ratios=_sum_steps(self.spaced_ttft_ratios, other.spaced_ttft_ratios),
            spaced_duration_ratios=_sum_steps(
                self.spaced_duration_ratios, other.spaced_duration_ratios
            ),
            slices=_sum_slices(self.slices, other.slices),
            candidate_failed=self.candidate_failed + other.candidate_failed,
            candidate_valid=self.candidate_valid + other.candidate_valid,
            incumbent_failed=self.incumbent_failed + other.incumbent_failed,
            incumbent_valid=self.incumbent_valid + other.incumbent_valid,
            candidate_ttfts=_sum_steps(self.candidate_ttfts, other.candidate_ttfts),
            candidate_durations=_sum_steps(self.candidate_durations, other.candidate_durations),
            spaced_candidate_ttfts=_sum_steps(
                self.spaced_candidate_ttfts, other.spaced_candidate_ttfts
            ),
            spaced_candidate_durations=_sum_steps(
                self.spaced_candidate_durations, other.spaced_candidate_durations
            ),
            incumbent_ttfts=_sum_steps(self.incumbent_ttfts, other.incumbent_ttfts),
            incumbent_durations=_sum_steps(self.incumbent_durations, other.incumbent_durations),
        )


def slower_than(limit: float, ratios: Mapping[int, int]) -> Count:
    """Count the ratios above ``limit``, which is rounded up by less than 9 percent to a step."""
    step = _step(limit)
    above = sum(count for at, count in ratios.items() if at > step)
    return Count(above, sum(ratios.values()))


def slower_than_before(limit: float, after: Mapping[int, int], before: Mapping[int, int]) -> Count:
    """Count the times above ``limit`` times the median of those before; none without any."""
    if not before:
        return Count()
    most = _median(before) + _step(limit)
    above = sum(count for at, count in after.items() if at > most)
    return Count(above, sum(after.values()))


def _median(steps: Mapping[int, int]) -> int:
    """The step that half of them do not exceed."""
    left = (sum(steps.values()) + 1) // 2
    for step in sorted(steps):
        left -= steps[step]
        if left <= 0:
            return step
    raise ValueError("nothing has no median")


def _felt(seconds: float | None) -> float | None:
    return None if seconds is None else max(seconds, UNFELT_SECONDS)


def _step(ratio: float) -> int:
    """Index of the first step at or above a ratio, within ``RATIO_LIMIT`` of 1."""
    if ratio <= 0:
        return -RATIO_LIMIT
    return max(-RATIO_LIMIT, min(RATIO_LIMIT, ceil(RATIO_STEPS * log2(ratio))))


def _one_step(ratio: float | None) -> dict[int, int]:
    return {} if ratio is None else {_step(ratio): 1}


def _sum_steps(left: Mapping[int, int], right: Mapping[int, int]) -> dict[int, int]:
    return {step: left.get(step, 0) + right.get(step, 0) for step in {**left, **right}}


def _sum_slices(left: Mapping[str, Count], right: Mapping[str, Count]) -> dict[str, Count]:
    total = dict(left)
    for name, count in right.items():
        known = name in total or len(total) < MAX_SLICES - (OTHER not in total)
        key = name if known else OTHER
        total[key] = total.get(key, Count()) + count
    return total
