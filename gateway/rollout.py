"""One bundle's way from shadow to live, or back; every move is a pure function of its reasons."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from pydantic import JsonValue, TypeAdapter

from gateway.errors import RolloutError
from gateway.evidence import Evidence
from gateway.guards import Guards, Reason, Verdict, judge

State = Literal["shadow", "canary", "replacing", "watch", "live", "rolled_back"]
Actor = Literal["guards", "operator"]


@dataclass(frozen=True, slots=True)
class Decision:
    """One move, with all it rested on.

    Attributes:
        at: When, in UTC.
        source: State left.
        target: State entered; from canary to canary it is the next step.
        share: Share of clients' traffic that the candidate gets from then on.
        by: Whether the guards or an operator decided.
        note: The operator's or the driver's own words.
        reasons: What each guard had found.
        evidence: What the stage had shown when it ended.
    """

    at: datetime
    source: State
    target: State
    share: float
    by: Actor
    note: str
    reasons: tuple[Reason, ...]
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Rollout:
    """A bundle being tried on a route.

    Attributes:
        id: Unique.
        route: Model name that apps ask for.
        bundle: Folder of the bundle.
        candidate: Name of the deployment that serves it.
        steps: Shares of clients' traffic, one canary step after the other, rising; none where the
            candidate takes the incumbent's place at once.
        started_at: When, in UTC.
        state: Where it is.
        step: Index into ``steps`` while in canary, else 0.
        evidence: What the present stage has shown; each stage begins with none.
        history: The moves made, oldest first.
    """

    id: str
    route: str
    bundle: str
    candidate: str
    steps: tuple[float, ...]
    started_at: datetime
    state: State = "shadow"
    step: int = 0
    evidence: Evidence = field(default_factory=Evidence)
    history: tuple[Decision, ...] = ()

    @property
    def is_active(self) -> bool:
        """Whether it is still being tried."""
        return self.state not in {"live", "rolled_back"}

    @property
    def replaces(self) -> bool:
        """Whether only one of the two engines runs at a time."""
        states = {self.state, *(decision.source for decision in self.history)}
        return bool(states & {"replacing", "watch"})

    @property
    def num_stages(self) -> int:
        """Stages in which the guards may roll it back: shadow and each canary step, or watch."""
        return 1 + len(self.steps)


def canary_share(rollout: Rollout) -> float:
    """Share of clients' traffic that the candidate is given."""
    if rollout.state == "canary":
        return rollout.steps[rollout.step]
    return 1.0 if rollout.state in {"watch", "live"} else 0.0


def judged(rollout: Rollout, guards: Guards, now: datetime) -> Rollout:
    """Return the rollout as its evidence moves it; itself unless something is proven."""
    if rollout.state == "rolled_back":
        return rollout
    verdict = judge(rollout.state, rollout.evidence, guards, rollout.num_stages)
    return transition(rollout, verdict, now)


def transition(rollout: Rollout, verdict: Verdict, now: datetime) -> Rollout:
    """Do what the guards say; waiting returns the rollout as it is.

    Raises:
        RolloutError: If the state does not allow the move.
    """
    if verdict.action == "wait":
        return rollout
    if verdict.action == "advance":
        return _advance(rollout, now, "guards", verdict.reasons)
    note = ", ".join(dict.fromkeys(reason.guard for reason in verdict.breaches))
    return roll_back(rollout, now, f"breached: {note}", verdict.reasons, by="guards")


def promote(rollout: Rollout, now: datetime, reasons: tuple[Reason, ...] = ()) -> Rollout:
    """Move one stage on by an operator's word: from shadow over each canary step to live.

    Raises:
        RolloutError: If the rollout is live or rolled back already, or its engine not yet there.
    """
    if rollout.state == "replacing":
        raise RolloutError(
            f"rollout {rollout.id} is replacing: its engine does not answer yet; wait for watch"
        )
    return _advance(rollout, now, "operator", reasons)


def begin_watch(rollout: Rollout, now: datetime, note: str) -> Rollout:
    """Let the candidate answer everybody, whose engine has taken the incumbent's place.

    What the incumbent has shown before stays beside what the candidate will show. A rollout that
    is elsewhere already is returned as it is.
    """
    if rollout.state != "replacing":
        return rollout
    moved = _decide(rollout, replace(rollout, state="watch"), now, "guards", (), note)
    return replace(moved, evidence=rollout.evidence)


def roll_back(
    rollout: Rollout,
    now: datetime,
    note: str,
    reasons: tuple[Reason, ...] = (),
    by: Actor = "operator",
) -> Rollout:
    """Give all traffic back to the incumbent, from any other state.

    Raises:
        RolloutError: If that has been done already.
    """
    if rollout.state == "rolled_back":
        raise RolloutError(f"rollout {rollout.id} is rolled back already; nothing was changed")
    moved = replace(rollout, state="rolled_back", step=0)
    return _decide(rollout, moved, now, by, reasons, note)


def go_back_too(rollout: Rollout, decision: Decision) -> Rollout:
    """Go back from where a rollout is by now, by a decision made when it was elsewhere."""
    moved = replace(rollout, state="rolled_back", step=0, evidence=Evidence())
    return replace(moved, history=(*rollout.history, replace(decision, source=rollout.state)))


def rollout_json(rollout: Rollout, verdict: Verdict | None = None) -> dict[str, JsonValue]:
    """The rollout as the admin API shows it; its history has an address of its own.

    Args:
        rollout: What to show.
        verdict: What the guards make of its evidence at present, if there is anything to judge.
    """
    shown = ROLLOUT.dump_python(replace(rollout, history=()), mode="json")
    del shown["history"]
    shown["canary_share"] = canary_share(rollout)
    shown["verdict"] = None if verdict is None else VERDICT.dump_python(verdict, mode="json")
    return dict(shown)


def decision_json(decision: Decision) -> dict[str, JsonValue]:
    """One move as the admin API shows it."""
    return dict(DECISION.dump_python(decision, mode="json"))


def _advance(rollout: Rollout, now: datetime, by: Actor, reasons: tuple[Reason, ...]) -> Rollout:
    if not rollout.is_active:
        raise RolloutError(
            f"rollout {rollout.id} is {rollout.state}, expected one under way; to try the bundle "
            f"again, start a new rollout of {rollout.bundle}"
        )
    step = rollout.step + 1 if rollout.state == "canary" else 0
    if rollout.state != "watch" and step < len(rollout.steps):
        moved = replace(rollout, state="canary", step=step)
    else:
        moved = replace(rollout, state="live", step=0)
    return _decide(rollout, moved, now, by, reasons, "")


def _decide(
    rollout: Rollout,
    moved: Rollout,
    now: datetime,
    by: Actor,
    reasons: tuple[Reason, ...],
    note: str,
) -> Rollout:
    """Write the move down and begin the new stage without evidence."""
    decision = Decision(
        at=now,
        source=rollout.state,
        target=moved.state,
        share=canary_share(moved),
        by=by,
        note=note,
        reasons=reasons,
        evidence=rollout.evidence,
    )
    return replace(moved, evidence=Evidence(), history=(*rollout.history, decision))


ROLLOUT = TypeAdapter(Rollout)
DECISION = TypeAdapter(Decision)
VERDICT = TypeAdapter(Verdict)
