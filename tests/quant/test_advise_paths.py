"""Laws of the reckoning behind ``retort advise``."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.advise.advice import advise, turning_points
from quant.advise.assumptions import Assumptions, Measured, resolve
from quant.advise.costs import DAYS_PER_MONTH, Served, gpus_needed, serving_cost
from quant.advise.paths import Flow, distill_cost, payback_months, quantize_cost, saved_until

REQUEST = {"prompt_tokens": 2000.0, "completion_tokens": 500.0}

volumes = st.floats(1.0, 1e9)
sizes = st.floats(0.1, 2000.0)
shares = st.floats(0.0, 1.0)


def assumed(**values: float) -> Assumptions:
    given_ = {"requests_per_month": 1e6, **REQUEST, **values}
    return resolve({}, given_).values


@given(volumes, sizes, shares, st.floats(0.0, 60.0))
def test_nothing_better_is_passed_over(
    volume: float, size: float, seen: float, needed: float
) -> None:
    of = assumed(requests_per_month=volume, teacher_gb=size, needed_within_days=needed)

    found = advise(of, seen)

    best = next(path for path in found.paths if path.name == found.recommended)
    assert not best.refusal
    assert all(best.net >= path.net for path in found.paths if not path.refusal)
    assert best.net >= 0
    assert best.days <= needed
    assert best.name == "none" or best.monthly_saving >= of.minimum_saving_per_month


@given(
    st.floats(0.0, 6.0),
    st.floats(0.0, 1e5),
    st.floats(0.1, 6.0),
    st.floats(0.0, 1e5),
    st.floats(1.0, 1e6),
)
def test_what_is_saved_until_it_pays_back_is_what_it_cost(
    start: float, early: float, later: float, late: float, cost: float
) -> None:
    flows = [Flow(start, early), Flow(start + later, late)]

    months = payback_months(flows, cost, 24.0)

    if months is None:
        assert saved_until(flows, 24.0) < cost * (1 + 1e-9)
    else:
        assert saved_until(flows, months) == pytest.approx(cost)


@given(volumes, st.floats(1.0, 10.0))
def test_more_traffic_never_takes_fewer_gpus(volume: float, more: float) -> None:
    few, many = (
        gpus_needed(Served.teacher(of), of)
        for of in (assumed(requests_per_month=v) for v in (volume, volume * more))
    )

    assert few <= many


def test_gpus_are_counted_by_hand() -> None:
    of = assumed(requests_per_month=20e6, teacher_gb=140, peak_over_mean=2)

    # 20e6 x (500 + 0.1 x 2000) tokens in a month of 730.5 hours, twice that at the peak.
    load = 20e6 * 700 / (730.5 * 3600) * 2
    by_hand = load / (40_200 / 140 * 0.6)
    assert gpus_needed(Served.teacher(of), of) == pytest.approx(-(-by_hand // 1))
    assert serving_cost(Served(1.0, 1e9), of) == pytest.approx(2.5 * 730.5)
    smaller = of.model_copy(update={"gpu_unit": 0.25})
    assert serving_cost(Served(1.0, 1e9), smaller) == pytest.approx(2.5 * 730.5 / 4)


def test_at_a_turning_point_the_recommendation_is_another() -> None:
    of = assumed(requests_per_month=5e6, teacher_gb=140)
    here = advise(of, 0.9).recommended

    turns = turning_points(of, 0.9)

    assert turns
    for volume, name in turns:
        there = of.model_copy(update={"requests_per_month": volume})
        assert advise(there, 0.9).recommended == name != here


def test_what_is_unknown_counts_as_broad() -> None:
    of = assumed(teacher_gb=140)

    chances = [advise(of, seen).paths[2].chance for seen in (0.9, 0.1, None)]

    assert chances == [of.chance_in_narrow, of.chance_in_broad, of.chance_in_broad]
    assert advise(of, None).is_narrow is None


def test_a_quantized_teacher_that_saves_nothing_is_left_out_of_both() -> None:
    slow = {"requests_per_month": 60e6, "quantized_speed": 0.7, "final_size": 0.06}
    slow |= {"final_speed": 5.0, "teacher_gb": 140.0}

    quick, late = (
        advise(assumed(**slow, quantize_days=days), 0.9).paths[3] for days in (2.0, 60.0)
    )

    of = assumed(**slow)
    assert quick.days == of.quantize_days + of.distill_days
    assert quick.monthly_saving == pytest.approx(quick.chance * quick.saving_if_good)
    assert quick.cost == late.cost == pytest.approx(quantize_cost(of) + distill_cost(of))
    months = 58 / DAYS_PER_MONTH
    assert quick.net - late.net == pytest.approx(months * quick.monthly_saving)


def test_derived_figures_follow_what_they_are_derived_from() -> None:
    of = resolve(
        {"student_size": Measured(0.2, "file")},
        {**REQUEST, "requests_per_month": 1, "teacher_gb": 8},
    )

    assert of.values.final_size == pytest.approx(0.1)
    assert of.values.teacher_tokens_per_second == pytest.approx(5025)
    assert of.origins["student_size"] == "file"
