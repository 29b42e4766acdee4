"""``report.html``: how a run went, in curves, and whether the teacher's distribution helped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.noise import Mean
from trainer.pages import render

TEMPLATE = Path(__file__).with_name("report.html.j2")
Document = Mapping[str, Any]


def write_report(metrics: Document, path: Path) -> None:
    """Write the page; it needs nothing beside it.

    Args:
        metrics: The content of ``metrics.json``.
        path: Replaced whole.
    """
    from trainer.curves import curves  # noqa: PLC0415 - matplotlib takes a second to load

    runs = {metrics["loss"]: metrics["points"]}
    if metrics["baseline"] is not None:
        runs["behaviour_cloning"] = metrics["baseline"]["points"]
    figures = [
        curves(runs, f"Task: {name_of(metrics['metric'])}", "mean of answers", "metric"),
        curves(runs, "Cross-entropy of the answers", "nats per token", "cross_entropy"),
        curves(runs, "Calibration error", "expected, 15 bins", "ece"),
    ]
    if metrics["heldout"]["kl_to_teacher_nats"] is not None:
        figures.insert(0, curves(runs, "KL to the teacher", "nats per token", "kl_to_teacher_nats"))
    words = {"verdict": verdict(metrics), "metric": name_of(metrics["metric"])}
    render(TEMPLATE, path, metrics=metrics, figures=figures, **words)


def verdict(metrics: Document) -> str:
    """Whether the distribution helped, said plainly; a difference that may be chance counts not."""
    if metrics["baseline"] is None:
        return _alone(metrics)
    ours, theirs = metrics["heldout"], metrics["baseline"]["heldout"]
    (what, our_distance), (_, their_distance) = (_distance(side) for side in (ours, theirs))
    nearer = their_distance - our_distance
    our_mean, their_mean = (Mean(side["metric"], side["metric_rows"]) for side in (ours, theirs))
    is_better = their_mean.is_surely_below(our_mean)
    is_sure = is_better or our_mean.is_surely_below(their_mean)
    figures = (
        f"{what} {our_distance:.4f} nats against {their_distance:.4f}, "
        f"{name_of(metrics['metric'])} {ours['metric']:.1%} against "
        f"{theirs['metric']:.1%} of {ours['metric_rows']}"
    )
    if nearer > 0 and is_better:
        return f"The teacher's distribution helped: {figures}, after as many seconds."
    if nearer > 0 and not is_sure:
        return (
            f"The teacher's distribution brought the student nearer to its teacher, but not surely "
            f"to better answers: {figures}, after as many seconds."
        )
    return f"The teacher's distribution did not help here: {figures}, after as many seconds."


def name_of(metric: str) -> str:
    """A metric in words."""
    words = {
        "exact_match": "answers right to the letter",
        "json_valid": "answers that are JSON",
        "json_f1": "F1 of the fields of the answers",
    }
    return words.get(metric, metric)


def _distance(quality: Document) -> tuple[str, float]:
    """How far from the teacher, in nats, and what that is."""
    kl: float | None = quality["kl_to_teacher_nats"]
    if kl is None:
        return "cross-entropy of the teacher's words", quality["cross_entropy"]
    return "KL to the teacher", kl


def _alone(metrics: Document) -> str:
    """What can be said without a baseline; there is none for a student's own answers."""
    if metrics["rollouts"] is not None:
        return _refinement(metrics)
    if metrics["retokenized"] is not None and metrics["loss"] == "behaviour_cloning":
        return (
            "Trained on the answers' words alone, in the student's own tokens: there is no KL to a "
            "teacher that has others."
        )
    if metrics["loss"] == "behaviour_cloning":
        return (
            "Trained on the answers' words alone, as asked; the logged distribution was not used."
        )
    return "No baseline was trained: whether the distribution helped is not known."


def _refinement(metrics: Document) -> str:
    before, after = metrics["heldout_before_training"], metrics["heldout"]
    words = (
        f"On the student's own answers to held-out prompts KL to the teacher went from "
        f"{before['kl_to_teacher_nats']:.4f} to {after['kl_to_teacher_nats']:.4f} nats."
    )
    return words if metrics["stopped"] is None else f"{words} The run {metrics['stopped']}."
