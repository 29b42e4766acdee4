"""What the answers come to: overall, slice by slice, and where they are worst (pure)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quant.compare.answers import Answer
from quant.compare.forced import Forced
from quant.compare.measures import (
    is_refusal,
    is_repetitive,
    is_structured,
    length_ratio,
    tool_calls,
)
from quant.compare.slices import Floats, Slice
from quant.compare.verdict import (
    ALPHA,
    Evidence,
    Question,
    level,
    overall,
    sentence,
    worst_slice,
)
from trainer.metrics import json_f1, json_valid

WORST = 20  # examples shown of each slice

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt and what both answered."""

    exchange_id: str
    prompt: str
    student: Answer
    teacher: Answer


@dataclass(frozen=True, slots=True)
class Findings:
    """All rows' results.

    Attributes:
        pairs: Row by row.
        student_scores: Of the metric, each from 0 to 1.
        teacher_scores: Likewise.
        student_forced: The student at the logged tokens.
        teacher_forced: The teacher there.
        slices: Which rows to look at together.
    """

    pairs: Sequence[Pair]
    student_scores: Floats
    teacher_scores: Floats
    student_forced: Forced
    teacher_forced: Forced
    slices: Sequence[Slice]

    @property
    def differences(self) -> Floats:
        """Student minus teacher, row by row."""
        found: Floats = self.student_scores - self.teacher_scores
        return found


def document(findings: Findings, question: Question) -> Document:
    """Judge the student; the part of ``compare.json`` that depends on the answers."""
    differences = findings.differences
    everything = question.evidence(differences)
    parts = {each.label: question.evidence(differences[each.rows]) for each in findings.slices}
    whole = overall(everything, question)
    worst = worst_slice(parts, len(differences), question)
    rows = [_slice_row(findings, each, parts[each.label], question) for each in findings.slices]
    everyone = Slice("all", "rows", np.arange(len(differences)))
    rows.sort(key=lambda row: (row["low"], row["difference"]))
    rows.insert(0, _slice_row(findings, everyone, everything, question))
    shown = sorted({number for row in rows for number in row["worst"]})
    return {
        "margin": question.margin,
        "alpha": ALPHA,
        "verdict": {
            "overall": asdict(whole) | {"sentence": sentence(whole, question.margin)},
            "worst_slice": None
            if worst is None
            else asdict(worst) | {"sentence": sentence(worst, question.margin)},
        },
        "measures": measures_of(findings),
        "slices": rows,
        "examples": {str(number): _example(findings, number) for number in shown},
    }


def measures_of(findings: Findings) -> Document:
    """Measures over all rows, of both sides where both have one; None where no row counts."""
    pairs = findings.pairs
    students, teachers = [p.student for p in pairs], [p.teacher for p in pairs]
    sides = (("teacher", teachers), ("student", students))
    looks = {"teacher": findings.teacher_forced, "student": findings.student_forced}
    lengths = [[len(each.token_ids) for each in side] for side in (students, teachers)]
    shares: dict[str, Callable[[Answer], bool]] = {
        "refusals": lambda answer: is_refusal(answer.text),
        "repetitive": lambda answer: is_repetitive(answer.token_ids),
        "cut_by_length": lambda answer: answer.finish == "length",
        "without_room": lambda answer: answer.finish == "no room",
    }
    return {
        "exact_match": _mean([a.text == b.text for a, b in zip(students, teachers, strict=True)]),
        "length_ratio": length_ratio(*lengths),
        **{
            measure: {name: _mean([of(answer) for answer in side]) for name, side in sides}
            for measure, of in shares.items()
        },
        **_structured(pairs),
        "teacher_forced": {
            name: {key: look.mean(key) for key in ("kl_nats", "agreement", "covered")}
            for name, look in looks.items()
        },
    }


def _structured(pairs: Sequence[Pair]) -> Document:
    """Of the rows whose teacher answered in JSON, or called tools."""
    of_json = [(p.student.text, p.teacher.text) for p in pairs if is_structured(p.teacher.text)]
    calls = [(tool_calls(p.student.text), tool_calls(p.teacher.text)) for p in pairs]
    calling = [(ours, theirs) for ours, theirs in calls if theirs is not None]
    return {
        "json": {
            "rows": len(of_json),
            "student_valid": _mean([json_valid("", ours, "") for ours, _ in of_json]),
            "field_f1": _mean([json_f1("", ours, theirs) for ours, theirs in of_json]),
        },
        "tool_calls": {
            "rows": len(calling),
            "equal": _mean([ours == theirs for ours, theirs in calling]),
            "student_without": _mean([ours is None for ours, _ in calling]),
        },
    }


def _slice_row(findings: Findings, part: Slice, evidence: Evidence, question: Question) -> Document:
    """One line of the table; the interval holds for all slices at once."""
    alpha = level(1 if part.kind == "all" else len(findings.slices))
    means = evidence.means
    return {
        "kind": part.kind,
        "name": part.name,
        "rows": means.rows,
        "student": float(findings.student_scores[part.rows].mean()),
        "teacher": float(findings.teacher_scores[part.rows].mean()),
        "difference": means.mean,
        "low": means.low(alpha),
        "high": means.high(alpha),
        "word": question.word(means, alpha, alpha),
        "kl_nats": findings.student_forced.mean("kl_nats", part.rows),
        "agreement": findings.student_forced.mean("agreement", part.rows),
        "worst": _worst(findings, part),
    }


def _worst(findings: Findings, part: Slice) -> list[int]:
    """Rows where the student falls behind most; of equal ones those that surprise it most."""
    surprise = np.nan_to_num(findings.student_forced.kl_nats[part.rows], nan=np.inf)
    lost = findings.differences[part.rows]
    order = np.lexsort((-surprise, lost))
    return [int(row) for row in part.rows[order[lost[order] < 0]][:WORST]]


def _example(findings: Findings, number: int) -> Document:
    pair = findings.pairs[number]
    return {
        "exchange_id": pair.exchange_id,
        "prompt": pair.prompt,
        "teacher": pair.teacher.text,
        "student": pair.student.text,
        "difference": float(findings.differences[number]),
        "kl_nats": float(findings.student_forced.kl_nats[number]),
        "slices": [each.label for each in findings.slices if number in each.rows],
    }


def judged(scores: Sequence[float | None], question: Question) -> Document:
    """What a judge says: how often each was better, and whether that may be chance."""
    said = np.array([score for score in scores if score is not None], np.float64)
    evidence = question.evidence(said) if len(said) else None
    return {
        "rows": len(said),
        "unread": len(scores) - len(said),
        "student_better": _mean((said > 0).tolist()),
        "teacher_better": _mean((said < 0).tolist()),
        "difference": evidence.means.mean if evidence else None,
        "low": evidence.means.low(level(1)) if evidence else None,
        "high": evidence.means.high(level(1)) if evidence else None,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
