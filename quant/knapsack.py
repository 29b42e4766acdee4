"""The best choice of one option per group under a budget (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """One format for one group of layers.

    Attributes:
        name: Of the format.
        size: In bytes.
        loss: What it costs in quality, in any unit that adds up.
    """

    name: str
    size: int
    loss: float


@dataclass(frozen=True, slots=True)
class Choice:
    """A format for every group.

    Attributes:
        names: Of the formats, by group.
        size: Sum over the groups.
        loss: Likewise.
    """

    names: Mapping[str, str]
    size: int
    loss: float


def choose(options: Mapping[str, tuple[Option, ...]], budget: int) -> Choice | None:
    """Return the choice of least loss whose size is within the budget; None if none is.

    Exact: of all choices for the groups so far, those are kept that no other beats in both size
    and loss; no best choice is lost, since what follows costs all of them the same.

    Source:
        Nemhauser and Ullmann 1969, "Discrete dynamic programming and capital allocation".
    """
    least_after = _least_sizes(options)
    front: list[tuple[int, float, tuple[str, ...]]] = [(0, 0.0, ())]
    for number, group in enumerate(options.values()):
        grown = sorted(
            (size + option.size, loss + option.loss, (*names, option.name))
            for size, loss, names in front
            for option in group
            if size + option.size + least_after[number + 1] <= budget
        )
        front = []
        for candidate in grown:
            if not front or candidate[1] < front[-1][1]:
                front.append(candidate)
    if not front:
        return None
    size, loss, names = front[-1]
    return Choice(dict(zip(options, names, strict=True)), size, loss)


def _least_sizes(options: Mapping[str, tuple[Option, ...]]) -> list[int]:
    """Smallest size of the groups from each one on; 0 after the last."""
    sums = [0]
    for group in reversed(list(options.values())):
        sums.append(sums[-1] + min(option.size for option in group))
    return sums[::-1]
