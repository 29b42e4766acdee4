from typing import Any

from quant.pareto import advice, on_front, recommended


def row(
    scheme: str, speed: float, right: float | None, worst: float | None = 1.0
) -> dict[str, Any]:
    return {
        "folder": "student",
        "scheme": scheme,
        "served": right is not None,
        "speed": speed,
        "exact_match": right,
        "quality_ratio_worst": worst,
        "size_bytes": 1_000_000,
    }


def test_what_is_beaten_in_both_is_not_on_the_front() -> None:
    rows = [
        row("none", 1.0, 0.9),
        row("int8", 1.5, 0.89),
        row("int4-rtn", 1.4, 0.7),
        row("int4-awq", 9.0, None),
    ]

    assert on_front(rows) == [True, True, False, False]


def test_the_fastest_that_keeps_its_worst_slice_is_recommended() -> None:
    rows = [row("none", 1.0, 0.9), row("int8", 1.5, 0.89), row("int4-rtn", 2.0, 0.85, worst=0.5)]

    pick = recommended(rows, 0.9)

    assert pick is not None
    assert pick["scheme"] == "int8"
    assert advice(rows, 0.9).startswith("Take student as int8: 1.50 times ")


def test_of_rows_about_as_fast_the_one_right_most_often_is_recommended() -> None:
    rows = [row("none", 1.0, 0.97), row("int8", 1.5, 0.89), row("int4-gptq", 1.3, 0.95)]

    pick = recommended(rows, 0.9)

    assert pick is not None
    assert pick["scheme"] == "int4-gptq"


def test_without_a_row_that_qualifies_there_is_no_pick() -> None:
    assert recommended([row("int8", 2.0, 0.2, worst=0.3)], 0.9) is None
    assert advice([], 0.9).startswith("No pick")


def test_what_had_too_few_right_answers_to_tell_what_it_keeps_is_not_recommended() -> None:
    rows = [row("none", 1.0, 0.1), row("int8", 1.5, 0.1, worst=None)]

    pick = recommended(rows, 0.9)

    assert pick is not None
    assert pick["scheme"] == "none"
    assert "Not known is what student as int8 keeps: its model got too few" in advice(rows, 0.9)
    assert advice(rows[1:], 0.9).startswith("No pick")
