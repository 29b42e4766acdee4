"""Which path to recommend, and why (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass

from quant.advise.assumptions import Assumptions
from quant.advise.paths import Path, PathName, all_paths

VOLUMES = tuple(2 ** (step / 4) for step in range(1, 81))  # up to a million times as much
NAMED = {
    "none": "Nothing",
    "quantize": "Quantizing",
    "distill": "Distilling",
    "both": "Doing both, in that order",
}
DOMAIN = {True: "narrow", False: "broad", None: "not known"}


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer.

    Attributes:
        recommended: A path.
        reasons: Why, in sentences.
        paths: All, in the order of what they need.
        is_narrow: Whether the domain is narrow; None if nothing is known of it.
    """

    recommended: PathName
    reasons: Sequence[str]
    paths: Sequence[Path]
    is_narrow: bool | None


def advise(of: Assumptions, seen_share: float | None) -> Advice:
    """Choose the path that leaves most over the horizon, of those that nothing stands against.

    Args:
        of: Everything that decides.
        seen_share: Of the newest requests' pairs of words, how many older ones have; None if it
            is not known.
    """
    is_narrow = None if seen_share is None else seen_share >= of.narrow_seen_share
    chance = of.chance_in_narrow if is_narrow else of.chance_in_broad
    final_chance = of.final_chance_in_narrow if is_narrow else of.final_chance_in_broad
    paths = all_paths(of, chance, final_chance)
    best = max((path for path in paths if not path.refusal), key=lambda path: path.net)
    domain = f"The domain is {DOMAIN[is_narrow]}; chance of a good student: {chance:.0%}."
    return Advice(best.name, (*_reasons(best, paths, of), domain), paths, is_narrow)


def turning_points(of: Assumptions, seen_share: float | None) -> list[tuple[float, PathName]]:
    """The nearest volumes, below and above, at which another path would be recommended.

    Returns:
        Requests a month with the path, at most one below and one above, a fifth apart at best.
    """
    here = advise(of, seen_share).recommended
    found: list[tuple[float, PathName]] = []
    for factors in ([1 / each for each in VOLUMES], VOLUMES):
        for factor in factors:
            volume = of.requests_per_month * factor
            there = of.model_copy(update={"requests_per_month": volume})
            other = advise(there, seen_share).recommended
            if other != here:
                found.append((volume, other))
                break
    return found


def _reasons(best: Path, paths: Sequence[Path], of: Assumptions) -> list[str]:
    now = paths[0].monthly_cost
    others = [path for path in paths if path.name not in {"none", best.name}]
    against = [
        f"{NAMED[path.name]}: {path.refusal or f'leaves {path.net:,.0f}'}." for path in others
    ]
    if best.name == "none":
        return [f"The traffic costs {now:,.0f} a month, and no path is worth its cost.", *against]
    why = (
        f"{NAMED[best.name]} leaves {best.net:,.0f} after {of.horizon_months:g} months: it saves "
        f"{best.monthly_saving:,.0f} of {now:,.0f} a month and costs {best.cost:,.0f}, earned back "
        f"after {best.payback_months or 0:.1f} months."
    )
    late = [path for path in others if path.days > of.needed_within_days and path.net > best.net]
    then = [f"{NAMED[path.name]} is worth more, once the need is met." for path in late]
    return [why, *against, *then]
