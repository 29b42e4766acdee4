"""Two replies are compared by what they mean, and nothing in a reply can break the comparison."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pair import Reply, compare, is_structured

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
JSON_OBJECTS = st.dictionaries(st.text(), JSON_VALUES) | st.lists(JSON_VALUES)


@given(JSON_OBJECTS)
def test_json_agrees_whatever_its_spacing_and_order(value: object) -> None:
    sorted_text = json.dumps(value, sort_keys=True, indent=2)
    plain = json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    pair = compare(Reply([sorted_text]), Reply([f"\n{plain} "]))

    assert pair.agrees
    assert pair.incumbent_valid
    assert pair.candidate_valid


@pytest.mark.parametrize(
    ("incumbent", "candidate", "agrees"),
    [
        (["Hello."], [" Hello.\n"], True),
        (["Hello."], ["hello."], False),
        (['{"n": 1}'], ['{"n": 2}'], False),
        (['{"n": 1}'], ['{"n": true}'], False),
        (["[1, 2]"], ["[2, 1]"], False),
        (["a", "b"], ["a"], False),
        (["a", "b"], ["a", "b"], True),
        (['{"n": 1}'], ['{"n": 1'], False),
        (["1"], ["1.0"], False),
    ],
)
def test_agreement(incumbent: list[str], candidate: list[str], agrees: bool) -> None:
    assert compare(Reply(incumbent), Reply(candidate)).agrees is agrees


def test_a_failed_candidate_never_agrees() -> None:
    pair = compare(Reply(["yes"]), Reply(["yes"], failed=True))

    assert pair.candidate_failed
    assert not pair.agrees


def test_sampled_answers_neither_agree_nor_disagree() -> None:
    assert compare(Reply(["yes"]), Reply(["no"]), is_sampled=True).agrees is None


def test_latencies_become_ratios_where_both_are_known() -> None:
    incumbent = Reply(["a"], ttft_seconds=0.2, duration_seconds=2.0)
    candidate = Reply(["a"], ttft_seconds=0.3, duration_seconds=None)

    pair = compare(incumbent, candidate, "short")

    assert pair.ttft_ratio == pytest.approx(1.5)
    assert pair.duration_ratio is None
    assert pair.slice == "short"


def test_differences_that_nobody_feels_are_none() -> None:
    pair = compare(Reply(["a"], ttft_seconds=0.002), Reply(["a"], ttft_seconds=0.02))

    assert pair.ttft_ratio == 1.0


@pytest.mark.parametrize("text", ["", "plain", "42", '"text"', "true", "{", "[1,]", '{"a": NaN}'])
def test_only_whole_objects_and_arrays_are_structured(text: str) -> None:
    assert not is_structured([text])


def test_every_choice_must_be_structured_and_there_must_be_one() -> None:
    assert is_structured(["{}", "[]"])
    assert not is_structured(["{}", "no"])
    assert not is_structured([])


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * 300 + "]" * 300, "[" * 2000 + "]" * 2000, '{"\ud800": 1}', "[9e999]"],
)
def test_hostile_json_is_compared_as_text(text: str) -> None:
    assert compare(Reply([text]), Reply([text])).agrees
    assert not compare(Reply([text]), Reply(["{}"])).agrees


@given(st.text(), st.text())
def test_any_text_can_be_compared_and_the_order_does_not_matter(left: str, right: str) -> None:
    forth = compare(Reply([left]), Reply([right]))
    back = compare(Reply([right]), Reply([left]))

    assert forth.agrees == back.agrees
    assert forth.incumbent_valid == back.candidate_valid
