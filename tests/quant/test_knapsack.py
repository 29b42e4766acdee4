import itertools

from hypothesis import given
from hypothesis import strategies as st

from quant.knapsack import Choice, Option, choose

sizes = st.integers(1, 20)
losses = st.floats(0, 1, allow_nan=False)
groups = st.lists(
    st.lists(st.tuples(sizes, losses), min_size=1, max_size=4), min_size=1, max_size=5
)


def as_options(drawn: list[list[tuple[int, float]]]) -> dict[str, tuple[Option, ...]]:
    return {
        f"group {number}": tuple(Option(f"{i}", *each) for i, each in enumerate(group))
        for number, group in enumerate(drawn)
    }


@given(drawn=groups, budget=st.integers(1, 100))
def test_no_choice_within_the_budget_loses_less(
    drawn: list[list[tuple[int, float]]], budget: int
) -> None:
    every = itertools.product(*drawn)
    allowed = [sum(loss for _, loss in c) for c in every if sum(size for size, _ in c) <= budget]

    choice = choose(as_options(drawn), budget)

    if not allowed:
        assert choice is None
        return
    assert choice is not None
    assert choice.size <= budget
    assert abs(choice.loss - min(allowed)) < 1e-9


def test_what_loses_little_gives_way_first() -> None:
    options = {
        "attention": (Option("16 bits", 100, 0.0), Option("int4", 25, 0.5)),
        "mlp": (Option("16 bits", 100, 0.0), Option("int4", 25, 0.01)),
    }

    assert choose(options, 130) == Choice({"attention": "16 bits", "mlp": "int4"}, 125, 0.01)
    assert choose(options, 49) is None
