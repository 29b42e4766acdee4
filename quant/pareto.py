"""Which rows of a matrix are worth having (pure)."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

AS_FAST = 1.25  # one model timed beside itself differs by this much on a shared machine


def on_front(rows: Sequence[Row]) -> list[bool]:
    """Say of each row whether no other is better both in speed and in right answers."""
    return [
        is_measured(row) and not any(_beats(other, row) for other in rows if is_measured(other))
        for row in rows
    ]


def is_measured(row: Row) -> bool:
    """Whether a row was served and examined."""
    return bool(row["served"]) and row.get("exact_match") is not None


def recommended(rows: Sequence[Row], floor: float) -> Row | None:
    """Of the rows about as fast as the fastest, the one that is right most often.

    Only rows that keep their floor in their worst slice count: a share of the right answers of
    the model each was made of, which is None where those were too few to tell. Of two that are as
    often right the smaller one.
    """
    known = [row for row in rows if is_measured(row) and row["quality_ratio_worst"] is not None]
    kept = [row for row in known if row["quality_ratio_worst"] >= floor]
    fastest = max((row["speed"] for row in kept), default=0.0)
    alike = [row for row in kept if row["speed"] * AS_FAST >= fastest]
    return max(alike, key=lambda row: (row["exact_match"], -row["size_bytes"]), default=None)


def advice(rows: Sequence[Row], floor: float) -> str:
    """The row to take, in words, with its reason."""
    row = recommended(rows, floor)
    unknown = _unknown(rows)
    if row is None:
        return (
            "No pick: the log has no held-out rows of these models' teacher, or nothing keeps "
            f"{floor:.0%} of its model's right answers in every slice.{unknown}"
        )
    return (
        f"Take {_name(row)}: {row['speed']:.2f} times the first model's tokens per second, "
        f"{row['exact_match']:.1%} of the teacher's answers to the letter, "
        f"{row['quality_ratio_worst']:.1%} of its own model's right answers in its worst slice "
        f"(floor {floor:.0%}), {row['size_bytes'] / 1e6:,.1f} MB. Nothing that keeps its floor is "
        f"over {AS_FAST - 1:.0%} faster, and of what is no more than that slower than the fastest "
        f"nothing is right more often.{unknown}"
    )


def _unknown(rows: Sequence[Row]) -> str:
    """What cannot be picked since its model has too few right answers, as a sentence more."""
    names = [_name(r) for r in rows if is_measured(r) and r["quality_ratio_worst"] is None]
    if not names:
        return ""
    return (
        f" Not known is what {', '.join(names)} keeps: its model got too few held-out rows right "
        "to tell."
    )


def _name(row: Row) -> str:
    return row["folder"] if row["scheme"] == "none" else f"{row['folder']} as {row['scheme']}"


def _beats(one: Row, other: Row) -> bool:
    at_least = one["speed"] >= other["speed"] and one["exact_match"] >= other["exact_match"]
    is_more = one["speed"] > other["speed"] or one["exact_match"] > other["exact_match"]
    return bool(at_least and is_more)
