"""The paths to cheaper answers: what each costs, gives, and when it has paid (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from quant.advise.assumptions import Assumptions
from quant.advise.costs import (
    DAYS_PER_MONTH,
    Served,
    gpus_for_memory,
    gpus_needed,
    is_paid_by_the_token,
    present_cost,
    safety_net,
    serving_cost,
)

PathName = Literal["none", "quantize", "distill", "both"]


@dataclass(frozen=True, slots=True)
class Path:
    """What one path costs and gives; money, beside staying as it is.

    Attributes:
        name: Of the path.
        gpus: That the model at its end needs, and a teacher beside it.
        monthly_cost: Of serving them.
        monthly_saving: Expected from the day it is done: what is saved if all goes well times the
            chance of that and, where an earlier step stays otherwise, what that one saves.
        saving_if_good: If all goes well.
        chance: That it does.
        cost: To get there, failed iterations and their work included.
        days: Until it serves.
        payback_months: After which what was saved is what it cost; None if not in the horizon.
        net: Expected savings of the horizon less the cost.
        refusal: Why it is no choice; empty if it is one.
    """

    name: PathName
    gpus: float
    monthly_cost: float
    monthly_saving: float
    saving_if_good: float
    chance: float
    cost: float
    days: float
    payback_months: float | None
    net: float
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """Money saved a month from some time on, until the next flow begins."""

    from_months: float
    per_month: float


@dataclass(frozen=True, slots=True)
class Way:
    """A path before it is reckoned.

    Attributes:
        model: At its end.
        net_gpus: For the teacher beside it.
        net_cost: Of those a month.
        chance: That this is good enough.
        cost: Money to get there.
        days: Until it serves.
        flows: Expected savings; the last begins when it is done.
    """

    name: PathName
    model: Served
    chance: float
    cost: float
    days: float
    flows: Sequence[Flow]
    net_gpus: float = 0.0
    net_cost: float = 0.0


def all_paths(of: Assumptions, chance: float, final_chance: float) -> list[Path]:
    """Staying, quantizing, distilling, and both in that order.

    Args:
        of: Everything that decides.
        chance: That a student is good enough.
        final_chance: That a quantized one is.
    """
    ways = (_quantizing(of), _distilling(of, chance), _both(of, final_chance))
    return [_staying(of), *(_judged(way, of) for way in ways)]


def why_not_quantized(of: Assumptions) -> str:
    """Say why the teacher cannot be quantized and served; nothing if it can."""
    if is_paid_by_the_token(of):
        return "the teacher is paid by the token: nobody but its owner can quantize it"
    return _too_big(_quantized(of), of)


def is_quantized_first(of: Assumptions) -> bool:
    """Whether the teacher can be quantized before there is a student, and that may save a thing."""
    return not why_not_quantized(of) and of.chance_of_quantized * _saving(_quantized(of), of) > 0


def distill_cost(of: Assumptions) -> float:
    """Money for all runs and the work on them."""
    work = of.iteration_engineer_days * of.engineer_price_per_day
    return (1 + of.failed_iterations) * (of.training_cost + work)


def quantize_cost(of: Assumptions) -> float:
    """Money for a quantized model that serves."""
    return of.quantize_compute + of.quantize_engineer_days * of.engineer_price_per_day


def saved_until(flows: Sequence[Flow], months: float) -> float:
    """Money saved from now to a month."""
    ends = [*(flow.from_months for flow in flows[1:]), months]
    return sum(
        flow.per_month * max(0.0, min(end, months) - flow.from_months)
        for flow, end in zip(flows, ends, strict=True)
    )


def payback_months(flows: Sequence[Flow], cost: float, horizon: float) -> float | None:
    """When savings have come to a cost; None if they do not within the horizon."""
    saved = 0.0
    ends = [*(flow.from_months for flow in flows[1:]), horizon]
    for flow, end in zip(flows, ends, strict=True):
        length = max(0.0, min(end, horizon) - flow.from_months)
        if flow.per_month > 0 and saved + flow.per_month * length >= cost:
            return flow.from_months + (cost - saved) / flow.per_month
        saved += flow.per_month * length
    return None


def _staying(of: Assumptions) -> Path:
    gpus = 0.0 if is_paid_by_the_token(of) else gpus_needed(Served.teacher(of), of)
    return Path("none", gpus, present_cost(of), 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)


def _quantizing(of: Assumptions) -> Way:
    chance, days = of.chance_of_quantized, of.quantize_days
    flow = _flow(days, chance * _saving(_quantized(of), of))
    return Way("quantize", _quantized(of), chance, quantize_cost(of), days, [flow])


def _distilling(of: Assumptions, chance: float) -> Way:
    student = Served.teacher(of).changed(of.student_size, of.student_speed)
    net = safety_net(of, of.escalated_share)
    flow = _flow(of.distill_days, chance * (_saving(student, of) - net[1]))
    return Way("distill", student, chance, distill_cost(of), of.distill_days, [flow], *net)


def _both(of: Assumptions, chance: float) -> Way:
    """The teacher is quantized first, if that saves, and stays where the student fails."""
    final = Served.teacher(of).changed(of.final_size, of.final_speed)
    has_first = is_quantized_first(of)
    early = of.chance_of_quantized * _saving(_quantized(of), of) if has_first else 0.0
    net = safety_net(of, of.final_escalated_share)
    last = chance * (_saving(final, of) - net[1]) + (1 - chance) * early
    steps = 2 if has_first else 1  # quantizations
    days = steps * of.quantize_days + of.distill_days
    cost = steps * quantize_cost(of) + distill_cost(of)
    flows = [_flow(of.quantize_days, early), _flow(days, last)]
    return Way("both", final, chance, cost, days, flows, *net)


def _quantized(of: Assumptions) -> Served:
    return Served.teacher(of).changed(of.quantized_size, of.quantized_speed)


def _saving(model: Served, of: Assumptions) -> float:
    return present_cost(of) - serving_cost(model, of)


def _flow(days: float, per_month: float) -> Flow:
    return Flow(days / DAYS_PER_MONTH, per_month)


def _path(way: Way, of: Assumptions) -> Path:
    return Path(
        name=way.name,
        gpus=gpus_needed(way.model, of) + way.net_gpus,
        monthly_cost=serving_cost(way.model, of) + way.net_cost,
        monthly_saving=way.flows[-1].per_month,
        saving_if_good=_saving(way.model, of) - way.net_cost,
        chance=way.chance,
        cost=way.cost,
        days=way.days,
        payback_months=payback_months(way.flows, way.cost, of.horizon_months),
        net=saved_until(way.flows, of.horizon_months) - way.cost,
    )


def _judged(way: Way, of: Assumptions) -> Path:
    """A path with what stands against it."""
    path = _path(way, of)
    refusal = why_not_quantized(of) if way.name == "quantize" else _too_big(way.model, of)
    if not refusal and path.days > of.needed_within_days:
        refusal = f"it takes {path.days:g} days and is needed within {of.needed_within_days:g}"
    return replace(path, refusal=refusal or _unpaid(path, of))


def _too_big(model: Served, of: Assumptions) -> str:
    """Why a model cannot be served at all; nothing if it can."""
    gpus = gpus_for_memory(model, of)
    if gpus <= of.gpus_per_server:
        return ""
    return f"its weights take {gpus:g} GPUs, a server has {of.gpus_per_server:g}"


def _unpaid(path: Path, of: Assumptions) -> str:
    """Why a path is not worth its cost; nothing if it is."""
    if path.payback_months is None:
        return f"it does not earn its cost back within {of.horizon_months:g} months"
    least = of.minimum_saving_per_month
    if path.monthly_saving < least:
        return (
            f"the {path.monthly_saving:,.0f} a month that it saves are less than the {least:,.0f} "
            "that are worth the attention"
        )
    return ""
