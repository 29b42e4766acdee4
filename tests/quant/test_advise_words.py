"""The limit between a narrow and a broad domain, on texts of both kinds."""

import ast
import json
import random
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import pytest

from quant.advise.assumptions import Assumptions
from quant.advise.words import NEEDED_WORDS, seen_share, split_words, texts_of
from trainer.support_desk.lexicon import Lexicon
from trainer.support_desk.sets import Set, Sizes, draw_set, row

LIMIT = Assumptions.model_fields["narrow_seen_share"].default


def share(texts: Iterable[str]) -> float | None:
    return seen_share([split_words(text) for text in texts])


def docstrings() -> list[str]:
    """Of Python's standard library: about anything."""
    documented = (ast.FunctionDef, ast.ClassDef, ast.Module)
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_bytes()))]
    found = [ast.get_docstring(node) for node in nodes if isinstance(node, documented)]
    return [text for text in found if text]


def test_a_support_desk_is_narrow_and_documentation_broad() -> None:
    messages = draw_set(Lexicon.load(), Set.TRAFFIC, Sizes(common=2000, rare=400), 0)
    desk = [turn["content"] for one in messages for turn in json.loads(row(one))["messages"][1:]]
    documentation = docstrings()
    random.Random(0).shuffle(desk)
    random.Random(0).shuffle(documentation)

    narrow, broad = share(desk), share(documentation)

    assert narrow is not None
    assert broad is not None
    assert broad + 0.1 < LIMIT < narrow - 0.1


def test_new_wording_is_told_from_old() -> None:
    old = ["to be or not to be that is the question"] * (NEEDED_WORDS // 10)
    new = [f"nothing{n} like this{n} ever was{n} said" for n in range(1000)]

    assert share(old + old) == 1.0
    assert share(new + old) == 0.0  # the newest come first
    assert share(new) is None  # too few words to say


def test_scripts_without_spaces_are_read_letter_by_letter() -> None:
    assert split_words("注文を Cancel!") == ["注", "文", "を", "cancel", "!"]


@pytest.mark.parametrize(
    ("request_", "answers", "expected"),
    [
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
            ["a"],
            ["u", "a"],
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}]}, None, ["u"]),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, ["a", None], ["a"]),
        ({"prompt": "p"}, ["a", "b"], ["p", "a", "b"]),
        ({"prompt": [1, 2]}, ["a"], ["a"]),
    ],
)
def test_the_last_message_and_the_answers_count(
    request_: dict[str, object], answers: list[str | None] | None, expected: list[str]
) -> None:
    assert list(texts_of(json.dumps(request_), answers)) == expected
