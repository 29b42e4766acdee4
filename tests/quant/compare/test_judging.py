import pytest

from capture.errors import ConfigError
from quant.compare.judging import JudgeSpec, check_judge, judge_pairs, settled, word_of
from tests.support.fake_judge import NAME, likes_long
from tests.support.json_server import Asked, Reply, json_server


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("A", 1.0),
        (" **b**.", -1.0),
        ("Same", 0.0),
        ("<think>B or A?</think>\nA", 1.0),
        ("Both are fine", None),
        ("", None),
    ],
)
def test_one_word_is_read(said: str, score: float | None) -> None:
    assert word_of(said) == score


@pytest.mark.parametrize(
    ("student_first", "teacher_first", "score"),
    [
        ("A", "B", 1.0),
        ("B", "A", -1.0),
        ("A", "A", 0.0),
        ("B", "B", 0.0),
        ("same", "same", 0.0),
        ("A", "same", 0.0),
        ("well", "B", None),
    ],
)
def test_only_what_holds_in_both_orders_counts(
    student_first: str, teacher_first: str, score: float | None
) -> None:
    assert settled(student_first, teacher_first) == score


def test_pairs_are_asked_twice_and_equal_ones_not_at_all() -> None:
    asked: list[Asked] = []
    steps: list[None] = []

    def respond(question: Asked) -> Reply:
        asked.append(question)
        return likes_long(question)

    pairs = [("p", "longer", "short"), ("p", "same", "same"), ("q", "no", "yes")]
    with json_server(respond) as url:
        found = judge_pairs(JudgeSpec(url, NAME), pairs, lambda: steps.append(None))

    assert found == [1.0, 0.0, -1.0]
    assert len(steps) == 3
    bodies = [each.body for each in asked if each.body is not None]
    assert len(bodies) == 4
    assert all(body["temperature"] == 0 for body in bodies)
    assert all(each.headers.get("x-retort-capture") == "off" for each in asked if each.body)


def test_a_pair_that_the_judge_does_not_take_is_unread_and_the_others_are_judged() -> None:
    def respond(question: Asked) -> Reply:
        if question.body is not None and "endless" in question.body["messages"][-1]["content"]:
            return Reply({"error": {"message": "longer than the context"}}, 400)
        return likes_long(question)

    steps: list[None] = []
    pairs = [("p", "longer", "short"), ("endless", "a", "b"), ("q", "no", "yes")]
    with json_server(respond) as url:
        found = judge_pairs(JudgeSpec(url, NAME), pairs, lambda: steps.append(None))

    assert found == [1.0, None, -1.0]
    assert len(steps) == 3


def test_a_judge_that_is_not_there_is_named() -> None:
    with json_server(likes_long) as url:
        check_judge(JudgeSpec(url, NAME))
        with pytest.raises(ConfigError, match="no route 'other'"):
            check_judge(JudgeSpec(url, "other"))
