"""Rollouts for people: tables of where one stands, what its guards find, and how it came there."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text

from gateway.admin_client import Json
from gateway.guards import Reason, Verdict
from gateway.rollout import DECISION, ROLLOUT, Decision, Rollout, canary_share

VERDICT: TypeAdapter[Verdict | None] = TypeAdapter(Verdict | None)
LIST = TypeAdapter(list[Json])
COLOURS = {
    "shadow": "cyan",
    "canary": "yellow",
    "replacing": "yellow",
    "watch": "yellow",
    "live": "green",
    "rolled_back": "red",
    "passed": "green",
    "breached": "red",
    "open": "yellow",
    "too_few": "dim",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A rollout as the admin API showed it."""

    rollout: Rollout
    verdict: Verdict | None

    @classmethod
    def read(cls, body: Json) -> "Shown":
        """Parse what ``rollout_json`` wrote."""
        rollout = ROLLOUT.validate_python(body)
        return cls(rollout, VERDICT.validate_python(body.get("verdict")))


def read_list(body: Json) -> list[Json]:
    """The items of a list that the admin API sent."""
    return LIST.validate_python(body["data"])


def read_decisions(body: Json) -> list[Decision]:
    """Parse a rollout's history as the admin API sent it."""
    return [DECISION.validate_python(move) for move in read_list(body)]


def rollouts_table(shown: Sequence[Shown]) -> Table:
    """One line per rollout."""
    columns = ("id", "route", "bundle", "state", "traffic", "pairs", "answers", "started")
    table = Table(*columns, title="Rollouts")
    for each in shown:
        rollout, seen = each.rollout, each.rollout.evidence
        table.add_row(
            rollout.id,
            rollout.route,
            rollout.bundle,
            _coloured(rollout.state),
            f"{canary_share(rollout):.0%}",
            str(seen.agreed.trials),
            str(seen.candidate_failed.trials),
            f"{rollout.started_at:%Y-%m-%d %H:%M:%S}",
        )
    return table


def guards_table(shown: Shown) -> Table:
    """What every guard finds in the present stage."""
    title = f"Guards of {shown.rollout.id} in {shown.rollout.state}"
    table = Table("guard", "slice", "finding", "seen", "proven", "asked", "sample", title=title)
    for reason in () if shown.verdict is None else shown.verdict.reasons:
        table.add_row(*_cells(reason))
    return table


def history_table(decisions: Sequence[Decision]) -> Table:
    """One line per move, with the guards that brought a rollback about."""
    table = Table("at", "from", "to", "traffic", "by", "why", title="History")
    for move in decisions:
        breaches = [str(reason) for reason in move.reasons if reason.finding == "breached"]
        passed = "every guard passed" if move.by == "guards" else ""
        table.add_row(
            f"{move.at:%Y-%m-%d %H:%M:%S}",
            _coloured(move.source),
            _coloured(move.target),
            f"{move.share:.0%}",
            move.by,
            "\n".join([move.note or passed, *breaches]),
        )
    return table


def _cells(reason: Reason) -> Sequence[str | Text]:
    sign, surely = ("<=", ">=") if reason.limit == "ceiling" else (">=", "<=")
    if reason.finding != "breached":
        surely = sign
    return (
        reason.guard,
        reason.slice or "",
        _coloured(reason.finding),
        "" if reason.observed is None else f"{reason.observed:.3f}",
        "" if reason.observed is None else f"{surely} {reason.bound:.3f}",
        f"{sign} {reason.threshold:.3f}",
        str(reason.sample),
    )


def _coloured(word: str) -> Text:
    return Text(word, style=COLOURS[word])
