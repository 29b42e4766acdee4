"""What answering a month's traffic costs with a model of some size and speed (pure)."""

import math
from dataclasses import dataclass

from quant.advise.assumptions import Assumptions

DAYS_PER_MONTH = 365.25 / 12
HOURS_PER_MONTH = 24 * DAYS_PER_MONTH
MILLION = 1e6
ROUNDING = 1e-9  # of a GPU: no whole one more for an error of arithmetic


@dataclass(frozen=True, slots=True)
class Served:
    """A model on GPUs.

    Attributes:
        weights_gb: Of its weights.
        tokens_per_second: It writes, per GPU.
    """

    weights_gb: float
    tokens_per_second: float

    @classmethod
    def teacher(cls, of: Assumptions) -> "Served":
        """The teacher as it is."""
        return cls(of.teacher_gb, of.teacher_tokens_per_second)

    def changed(self, size: float, speed: float) -> "Served":
        """One of other size and speed, both over this one's."""
        return Served(self.weights_gb * size, self.tokens_per_second * speed)


def is_paid_by_the_token(of: Assumptions) -> bool:
    """Whether somebody else serves the teacher, for money."""
    return of.price_per_million_prompt_tokens + of.price_per_million_completion_tokens > 0


def gpus_for_memory(model: Served, of: Assumptions) -> float:
    """GPUs whose memory holds a model once."""
    return _rounded(model.weights_gb * of.memory_over_weights / of.gpu_memory_gb, of.gpu_unit)


def gpus_needed(model: Served, of: Assumptions) -> float:
    """GPUs that hold a model and keep up in the busiest hour, whichever is more."""
    work = of.completion_tokens + of.prompt_tokens * of.prompt_token_cost
    mean = of.requests_per_month * work / (HOURS_PER_MONTH * 3600)
    for_speed = mean * of.peak_over_mean / (model.tokens_per_second * of.utilisation)
    return max(gpus_for_memory(model, of), _rounded(for_speed, of.gpu_unit))


def serving_cost(model: Served, of: Assumptions) -> float:
    """Money a month, for GPUs that run day and night."""
    return gpus_needed(model, of) * of.gpu_price_per_hour * HOURS_PER_MONTH


def present_cost(of: Assumptions) -> float:
    """Money a month, as things are."""
    if not is_paid_by_the_token(of):
        return serving_cost(Served.teacher(of), of)
    prompt = of.prompt_tokens * of.price_per_million_prompt_tokens
    completion = of.completion_tokens * of.price_per_million_completion_tokens
    return of.requests_per_month * (prompt + completion) / MILLION


def safety_net(of: Assumptions, share: float) -> tuple[float, float]:
    """GPUs and money a month for a teacher that answers a share of the requests."""
    if not share:
        return 0.0, 0.0
    requests = of.requests_per_month * share
    part = of.model_copy(update={"requests_per_month": requests})
    gpus = 0.0 if is_paid_by_the_token(of) else gpus_needed(Served.teacher(of), part)
    return gpus, present_cost(part)


def _rounded(gpus: float, unit: float) -> float:
    return math.ceil(gpus / unit - ROUNDING) * unit
