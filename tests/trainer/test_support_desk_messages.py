import random
import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.support_desk.draw import Draw
from trainer.support_desk.handwriting import misspell, type_plainly, type_unusually
from trainer.support_desk.lexicon import Lexicon, expand
from trainer.support_desk.message import Message, write_message, write_messages
from trainer.support_desk.rarity import Rarity, draw_rarities
from trainer.support_desk.request import Request, write_request
from trainer.support_desk.ticket import Ticket

LEXICON = Lexicon.load()
TICKETS = st.builds(
    Ticket,
    intent=st.sampled_from(list(LEXICON.intents)),
    product=st.none() | st.sampled_from(list(LEXICON.products)),
    quantity=st.none() | st.integers(1, 24),
    urgency=st.sampled_from(list(LEXICON.urgency)),
    contact=st.sampled_from(["any", *LEXICON.contact]),
)


@pytest.fixture(scope="module")
def common_texts() -> set[str]:
    return {message.text for message in messages(2000, 0)}


def messages(count: int, rare_fraction: float, seed: str = "0") -> list[Message]:
    return list(islice(write_messages(LEXICON, seed, rare_fraction), count))


def requests(*rarities: Rarity) -> list[Request]:
    rng = random.Random(0)
    return [write_request(Draw(rng, LEXICON, frozenset(rarities))) for _ in range(200)]


def last_named(text: str) -> str:
    ends = {
        product: max(
            (
                match.end()
                for word in words_of(product)
                for match in re.finditer(rf"\b{word}s?\b", text)
            ),
            default=-1,
        )
        for product in LEXICON.products
    }
    return max(ends, key=lambda product: ends[product])


def words_of(product: str) -> list[str]:
    words = LEXICON.products[product]
    return [noun for word in words.common + words.rare for noun in word.split("|")]


@given(TICKETS)
def test_an_answer_is_one_canonical_line_and_reads_back(ticket: Ticket) -> None:
    line = ticket.to_json()
    assert Ticket.from_json(line) == ticket
    assert line.startswith('{"intent":"')
    assert "\n" not in line
    assert " " not in line


def test_equal_seeds_write_equal_messages_and_others_do_not() -> None:
    assert messages(50, 0.3) == messages(50, 0.3)
    assert messages(50, 0.3) != messages(50, 0.3, seed="1")


def test_answers_use_the_lexicon_s_names_only() -> None:
    for message in messages(1000, 0.5):
        ticket = message.ticket
        assert ticket.intent in LEXICON.intents
        assert ticket.product is None or ticket.product in LEXICON.products
        assert (ticket.product is not None) or ticket.quantity is None
        assert ticket.quantity is None or 1 <= ticket.quantity <= 24
        assert ticket.urgency in LEXICON.urgency
        assert ticket.contact in {"any", *LEXICON.contact}


def test_no_template_syntax_is_left_in_a_message() -> None:
    for message in messages(1000, 0.5):
        assert not set("{}|()<>") & set(message.text)


def test_the_slice_follows_from_what_is_rare() -> None:
    assert {message.slice for message in messages(300, 0)} == {"common"}
    assert {message.slice for message in messages(300, 1)} == {"rare"}


def test_rarities_come_in_ones_and_twos_and_all_of_them_come() -> None:
    rng = random.Random(0)
    drawn = [draw_rarities(rng) for _ in range(2000)]
    assert {len(rarities) for rarities in drawn} == {1, 2}
    assert frozenset.union(*drawn) == set(Rarity)


def test_a_tenth_of_the_forms_is_more_than_half_of_the_traffic_and_the_tail_is_long() -> None:
    forms = Counter(message.form for message in messages(6000, 0.25))
    popular = sum(count for _, count in forms.most_common(len(forms) // 10))
    assert popular > 3000
    assert sum(count == 1 for count in forms.values()) > len(forms) / 3


@pytest.mark.parametrize("rarity", list(Rarity))
def test_every_rarity_makes_messages_that_common_ones_are_not(
    rarity: Rarity, common_texts: set[str]
) -> None:
    rng = random.Random(1)
    written = [write_message(Draw(rng, LEXICON, frozenset({rarity}))) for _ in range(50)]
    assert all(message.form.endswith(f"+{rarity}") for message in written)
    assert not {message.text for message in written} & common_texts


def test_a_corrected_product_is_the_last_one_named() -> None:
    for request in requests(Rarity.FIX_PRODUCT):
        assert request.product is not None
        assert last_named(request.text) == request.product


def test_a_corrected_count_is_written_out_behind_the_wrong_one() -> None:
    written = {str(digits): word for digits, word in LEXICON.quantities.common}
    for request in requests(Rarity.FIX_COUNT):
        digits = str(request.quantity)
        fix = max(request.text.rfind(digits), request.text.rfind(written[digits]))
        assert fix >= 0


def test_a_change_of_mind_ends_with_what_is_meant() -> None:
    for request in requests(Rarity.FIX_INTENT):
        start = request.frame.split("{")[0].split("(")[0]
        marks = [request.text.rfind(mark) for mark in LEXICON.corrections.intent]
        assert max(marks) > 0
        assert request.text.rfind(start) > max(marks)


def test_slang_names_the_product_it_stands_for() -> None:
    for request in requests(Rarity.NOUN):
        assert request.product is not None
        rare = LEXICON.products[request.product].rare
        nouns = [word for entry in rare for word in entry.split("|")]
        assert any(noun in request.text for noun in nouns)


def test_alternatives_are_drawn_and_their_brackets_go() -> None:
    rng = random.Random(0)
    drawn = {expand(rng, "i (want|need) it (now|)") for _ in range(100)}
    assert drawn == {"i want it now", "i want it", "i need it now", "i need it"}


@given(st.text("abcdefghij 0123456789,.", max_size=60), st.integers(0, 8), st.integers())
def test_slips_of_the_finger_leave_numbers_and_short_words_alone(
    text: str, errors: int, seed: int
) -> None:
    typed = misspell(random.Random(seed), text, errors=errors)
    assert [c for c in typed if c.isdigit()] == [c for c in text if c.isdigit()]
    assert len(typed.split(" ")) == len(text.split(" "))


@given(st.integers())
def test_unusual_typing_never_leaves_a_text_as_it_is(seed: int) -> None:
    assert type_unusually(random.Random(seed), "my tv broke") != "my tv broke"


def test_plain_typing_is_mostly_right() -> None:
    text = "where is my monitor"
    typed = [type_plainly(random.Random(seed), text).lower() for seed in range(500)]
    assert 250 < typed.count(text) < 450
