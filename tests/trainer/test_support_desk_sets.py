import json

import pytest

from trainer.support_desk.lexicon import Lexicon
from trainer.support_desk.message import Message
from trainer.support_desk.sets import SYSTEM_PROMPT, Set, Sizes, draw_set, row, set_of
from trainer.support_desk.ticket import Ticket

LEXICON = Lexicon.load()


@pytest.fixture(scope="module")
def sets() -> dict[Set, list[Message]]:
    return {name: draw_set(LEXICON, name, Sizes(common=400, rare=200), 0) for name in Set}


def test_no_text_is_in_two_sets_whatever_the_seed(sets: dict[Set, list[Message]]) -> None:
    other_seed = draw_set(LEXICON, Set.LESSONS, Sizes(common=4000, rare=2000), 1)
    lessons = {message.text for message in [*sets[Set.LESSONS], *other_seed]}
    traffic = {message.text for message in sets[Set.TRAFFIC]}
    test = {message.text for message in sets[Set.TEST]}
    assert not lessons & traffic
    assert not lessons & test
    assert not traffic & test


def test_a_set_has_its_size_per_slice_and_no_text_twice(sets: dict[Set, list[Message]]) -> None:
    for messages in sets.values():
        assert sum(message.slice == "common" for message in messages) == 400
        assert sum(message.slice == "rare" for message in messages) == 200
        assert len({message.text for message in messages}) == 600


def test_a_set_is_drawn_alike_every_time(sets: dict[Set, list[Message]]) -> None:
    assert draw_set(LEXICON, Set.TEST, Sizes(common=400, rare=200), 0) == sets[Set.TEST]


def test_seeds_draw_different_messages(sets: dict[Set, list[Message]]) -> None:
    other = draw_set(LEXICON, Set.TEST, Sizes(common=400, rare=200), 1)
    assert other != sets[Set.TEST]


def test_every_set_gets_its_share_of_texts() -> None:
    drawn = [set_of(str(number)) for number in range(10_000)]
    assert drawn.count(Set.TEST) == pytest.approx(1000, rel=0.15)
    assert drawn.count(Set.TRAFFIC) == pytest.approx(2000, rel=0.15)


def test_a_row_is_a_chat_with_its_answer_and_slice(sets: dict[Set, list[Message]]) -> None:
    message = sets[Set.TEST][0]
    document = json.loads(row(message))
    system, user, assistant = document["messages"]
    assert system == {"role": "system", "content": SYSTEM_PROMPT}
    assert user == {"role": "user", "content": message.text}
    assert assistant["role"] == "assistant"
    assert Ticket.from_json(assistant["content"]) == message.ticket
    assert document["slice"] == message.slice
