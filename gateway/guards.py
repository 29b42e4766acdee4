"""Whether a rollout's evidence says to go on, to go back, or to wait; a pure function."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.confidence import confidence_sequence
from gateway.evidence import MAX_SLICES, Count, Evidence, slower_than, slower_than_before

NUM_GUARDS = 8
"""Guards of one stage, the slices together as one: each may err as often as the others."""

Stage = Literal["shadow", "canary", "replacing", "watch", "live"]
SETTLED = ("replacing", "live")  # nobody waits for the guards to let it go on
Action = Literal["wait", "advance", "rollback"]
Finding = Literal["passed", "open", "too_few", "breached"]
Limit = Literal["floor", "ceiling"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Sample = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(ge=1 / 128, le=128)]


class Guards(BaseModel):
    """What a candidate must show, ``[gateway.routes.NAME.guards]``.

    A threshold on all traffic has to be proven in shadow, so the nearer it lies to the truth, the
    more pairs that takes: without a single failure, ``error_rate_max`` of 0.05, 0.02 and 0.01 take
    116, 320 and 680 pairs at the default confidence.

    Attributes:
        error_rate_max: Share of requests that the candidate may fail.
        agreement_min: Share of mirrored requests to which both models must say the same, of those
            that are not sampled.
        worst_slice_agreement_min: The same within each slice.
        format_validity_min: Share of the incumbent's JSON answers to which the candidate must
            answer in JSON too; in canary, its share of JSON answers over the incumbent's.
        ttft_ratio_max: Time to first byte over the incumbent's beyond which a pair is slow.
        duration_ratio_max: The same of the last byte.
        slow_share_max: Share of pairs that may be slow; 0.5 bounds the median ratio.
        min_pairs: Mirrored requests before shadow may end.
        min_canary: Candidate answers to clients before a canary step may end.
        slice_min_sample: Requests before a slice, or another part of the traffic, is judged.
        min_breach_sample: Requests before any guard may end the rollout.
        confidence: Of the proof that lets shadow end, over all times that it is looked at.
        false_rollback_max: Chance that a candidate within every threshold is ever rolled back, over
            all guards, slices, stages and times of looking.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    error_rate_max: Annotated[float, Field(gt=0, le=1)] = 0.02
    agreement_min: Annotated[float, Field(ge=0, lt=1)] = 0.9
    worst_slice_agreement_min: Fraction = 0.8
    format_validity_min: Fraction = 0.98
    ttft_ratio_max: Ratio = 1.5
    duration_ratio_max: Ratio = 1.5
    slow_share_max: Fraction = 0.5
    min_pairs: Sample = 200
    min_canary: Sample = 50
    slice_min_sample: Sample = 30
    min_breach_sample: Sample = 20
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    false_rollback_max: Annotated[float, Field(gt=0, lt=1)] = 0.01

    @model_validator(mode="after")
    def _order(self) -> "Guards":
        if self.min_breach_sample > min(self.min_pairs, self.min_canary):
            raise ValueError(
                f"min_breach_sample is {self.min_breach_sample}, expected at most min_pairs "
                f"({self.min_pairs}) and min_canary ({self.min_canary}): a stage must not end "
                "before its guards may speak"
            )
        return self


@dataclass(frozen=True, slots=True)
class Reason:
    """What one guard found.

    Attributes:
        guard: Name, such as ``agreement``.
        finding: ``passed``; ``breached``; ``open`` (enough data, neither); ``too_few``.
        observed: Share seen, None without data.
        bound: The confidence bound on the bad side, or for a breach on the good side: what the
            share provably is at worst, or at best.
        threshold: What the share is held against.
        limit: Whether the share must stay above the threshold or below it.
        sample: Requests counted; of a breached latency guard, those that stand for their moment.
        slice: The slice, None for all traffic.
    """

    guard: str
    finding: Finding
    observed: float | None
    bound: float
    threshold: float
    limit: Limit
    sample: int
    slice: str | None = None

    def __str__(self) -> str:
        """The finding in words."""
        where = self.guard if self.slice is None else f"{self.guard} of slice {self.slice}"
        if self.observed is None:
            return f"{where}: nothing seen yet"
        is_upper = (self.limit == "ceiling") != (self.finding == "breached")
        surely = "at most" if is_upper else "at least"
        asked = "at most" if self.limit == "ceiling" else "at least"
        return (
            f"{where}: {self.observed:.3f} of {self.sample}, surely {surely} {self.bound:.3f}, "
            f"expected {asked} {self.threshold:.3f}"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and what every guard found."""

    action: Action
    reasons: tuple[Reason, ...]

    @property
    def breaches(self) -> tuple[Reason, ...]:
        """The reasons of a rollback."""
        return tuple(reason for reason in self.reasons if reason.finding == "breached")


@dataclass(frozen=True, slots=True)
class _Rule:
    """How much a guard must show.

    Attributes:
        need: What lets the stage end: a pass by the bound, a pass by the share seen, the latter
            only from ``min_sample`` on, or nothing.
        min_sample: Requests before it can pass.
        min_breach_sample: Requests before it can be breached.
        alpha: Chance of the bound that it passes by ever being wrong.
        breach_alpha: The same of the bound that it is breached by.
    """

    need: Literal["proof", "sight", "sight_if_judged", "nothing"]
    min_sample: int
    min_breach_sample: int
    alpha: float
    breach_alpha: float


@dataclass(frozen=True, slots=True)
class _Check:
    """One guard with the counts it looks at."""

    guard: str
    count: Count
    limit: Limit
    threshold: float
    rule: _Rule
    slice: str | None = None
    proof: Count | None = None  # counts that it is breached by, if others than it passes by


def judge(stage: Stage, evidence: Evidence, guards: Guards, num_stages: int) -> Verdict:
    """Judge a stage by what was recorded in it.

    *Rollback*: some guard is breached, that is, from ``min_breach_sample`` on (slices:
    ``slice_min_sample``) the confidence sequence leaves no value on the right side of the
    threshold. One breach ends the rollout, so ``false_rollback_max`` is shared out (Bonferroni):
    evenly among the stages, among ``NUM_GUARDS`` guards in each, and among ``MAX_SLICES`` slices,
    however many there are, so that a new slice never takes back what an older one has proven.

    *Advance*: nothing is breached and the stage's guards pass. In shadow, error rate and agreement
    pass by proof: ``min_pairs`` are there and the bound on the bad side clears the threshold. All
    must pass, so each may err by ``1 - confidence`` without correction.
    Times of one moment share its fate, and bounds hold for what is independent, so a latency guard
    is breached by the times that stand for their moment alone; it passes by all of them.
    Guards on a part of the traffic (slices, format, latency) pass by the observed share, since a
    part can be too small to prove anything; those below ``slice_min_sample`` are listed as
    ``too_few`` and do not hold the stage up. In canary, where proof at a small share would take
    days, error rate and format pass by the observed share of ``min_canary`` answers, and pairs
    still mirrored can only end it. In watch, where the candidate answers everybody, errors pass by
    proof again, from ``min_pairs`` answers on; format and latency by what was seen, beside what the
    incumbent showed before. A live candidate can only be rolled back.

    *Wait*: otherwise.

    More evidence in the same proportion never takes a rollback back (see ``confidence_sequence``).

    Args:
        stage: Where the rollout is.
        evidence: Of this stage alone.
        guards: What the candidate must show.
        num_stages: Stages in which the rollout may be rolled back: shadow and each canary step.
    """
    breach_alpha = guards.false_rollback_max / (num_stages * NUM_GUARDS)
    checks = [
        *_pair_checks(evidence, guards, stage, breach_alpha),
        *_canary_checks(evidence, guards, stage, breach_alpha),
    ]
    reasons = tuple(_weigh(check) for check in checks)
    if any(reason.finding == "breached" for reason in reasons):
        return Verdict("rollback", reasons)
    held = any(_holds_up(check, reason) for check, reason in zip(checks, reasons, strict=True))
    return Verdict("wait" if held or stage in SETTLED else "advance", reasons)


def _pair_checks(
    evidence: Evidence, guards: Guards, stage: Stage, breach_alpha: float
) -> Iterator[_Check]:
    """Guards on mirrored requests; after shadow they can only end the rollout."""
    breach, few = guards.min_breach_sample, guards.slice_min_sample
    alphas = (1 - guards.confidence, breach_alpha)
    if stage == "shadow":
        whole = _Rule("proof", guards.min_pairs, breach, *alphas)
        part = _Rule("sight_if_judged", few, breach, *alphas)
    elif evidence.failed.trials:
        whole = part = _Rule("nothing", few, breach, *alphas)
    else:
        return
    yield _Check("error_rate", evidence.failed, "ceiling", guards.error_rate_max, whole)
    yield _Check("agreement", evidence.agreed, "floor", guards.agreement_min, whole)
    yield _Check("format_validity", evidence.valid, "floor", guards.format_validity_min, part)
    spaced_ttfts, spaced_durations = evidence.spaced_ttft_ratios, evidence.spaced_duration_ratios
    for name, limit, ratios, spaced in (
        ("slow_ttft", guards.ttft_ratio_max, evidence.ttft_ratios, spaced_ttfts),
        ("slow_duration", guards.duration_ratio_max, evidence.duration_ratios, spaced_durations),
    ):
        slow, proof = slower_than(limit, ratios), slower_than(limit, spaced)
        yield _Check(name, slow, "ceiling", guards.slow_share_max, part, proof=proof)
    narrow = replace(part, min_breach_sample=few, breach_alpha=breach_alpha / MAX_SLICES)
    least = guards.worst_slice_agreement_min
    for name, count in evidence.slices.items():
        yield _Check("slice_agreement", count, "floor", least, narrow, name)


def _canary_checks(
    evidence: Evidence, guards: Guards, stage: Stage, breach_alpha: float
) -> Iterator[_Check]:
    """Guards on what clients got from the candidate.

    Which answers must be JSON is known only from the incumbent's share of them, in the same
    traffic: the least that share provably is, at half the alpha, sets the candidate's threshold.
    """
    if stage in {"shadow", "replacing"}:
        return
    alphas = (1 - guards.confidence, breach_alpha)
    least = guards.min_pairs if stage == "watch" else guards.min_canary
    rule = _Rule("sight", least, guards.min_breach_sample, *alphas)
    failed, valid = evidence.candidate_failed, evidence.candidate_valid
    of_errors = replace(rule, need="proof") if stage == "watch" else rule
    yield _Check("canary_error_rate", failed, "ceiling", guards.error_rate_max, of_errors)
    theirs, half = evidence.incumbent_valid, replace(rule, breach_alpha=breach_alpha / 2)
    share, _ = confidence_sequence(theirs.successes, theirs.trials, half.breach_alpha)
    yield _Check("canary_format", valid, "floor", guards.format_validity_min * share, half)
    if stage == "watch" and evidence.incumbent_ttfts:
        timed = replace(rule, min_sample=guards.slice_min_sample)
        yield from _watch_checks(evidence, guards, timed)


def _watch_checks(seen: Evidence, guards: Guards, rule: _Rule) -> Iterator[_Check]:
    """Guards on how long answers take, against the incumbent's median before it was replaced."""
    ttfts = (seen.candidate_ttfts, seen.spaced_candidate_ttfts)
    durations = (seen.candidate_durations, seen.spaced_candidate_durations)
    for name, limit, times, before in (
        ("canary_slow_ttft", guards.ttft_ratio_max, ttfts, seen.incumbent_ttfts),
        ("canary_slow_duration", guards.duration_ratio_max, durations, seen.incumbent_durations),
    ):
        slow, proof = (slower_than_before(limit, after, before) for after in times)
        yield _Check(name, slow, "ceiling", guards.slow_share_max, rule, proof=proof)


def _weigh(check: _Check) -> Reason:
    """Hold one guard's counts against its threshold."""
    count, proof, rule = check.count, check.proof or check.count, check.rule
    sign = -1 if check.limit == "ceiling" else 1
    worst = _bounds(count, rule.alpha)[check.limit == "ceiling"]
    best = _bounds(proof, rule.breach_alpha)[check.limit == "floor"]
    least = sign * check.threshold
    finding: Finding = "open"
    if proof.trials >= rule.min_breach_sample and sign * best < least:
        finding, count = "breached", proof
    elif count.share is None or count.trials < rule.min_sample:
        finding = "too_few"
    elif sign * (worst if rule.need == "proof" else count.share) >= least:
        finding = "passed"
    bound = best if finding == "breached" else worst
    seen = (count.share, bound, check.threshold, check.limit, count.trials)
    return Reason(check.guard, finding, *seen, check.slice)


def _bounds(count: Count, alpha: float) -> tuple[float, float]:
    return confidence_sequence(count.successes, count.trials, alpha)


def _holds_up(check: _Check, reason: Reason) -> bool:
    """Whether the stage cannot end yet because of what this guard found."""
    if check.rule.need == "nothing" or reason.finding == "passed":
        return False
    return reason.finding == "open" or check.rule.need != "sight_if_judged"
