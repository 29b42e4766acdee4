"""How far a prompt is from others, by its text."""

from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.errors import ConfigError
from capture.familiarity import LAST_BYTES, RUN_BYTES, Familiarity, prompt_text

ORDERS = ["where is my order", "where is my parcel", "I want my money back"]


def test_a_prompt_is_the_farther_the_fewer_share_its_words() -> None:
    training = Familiarity.of(ORDERS)
    known, near, far = (
        training.distance(text)
        for text in ("where is my", "where is my umbrella", "Wherefore art thou")
    )

    assert known == pytest.approx(log(4 / 3))  # two of the three have all of it
    assert known < near < far <= log(4)
    assert Familiarity.of(["same prompt"] * 9).distance("same prompt") == 0


@given(st.lists(st.text()), st.text())
def test_a_distance_has_bounds(texts: list[str], text: str) -> None:
    training = Familiarity.of(texts)

    assert 0 <= training.distance(text) <= log(len(texts) + 1) + 1e-9


def test_what_is_too_short_to_tell_is_as_far_as_can_be() -> None:
    assert Familiarity.of(ORDERS).distance("x" * (RUN_BYTES - 1)) == log(4)


def test_of_a_long_prompt_the_end_counts() -> None:
    training = Familiarity.of(ORDERS)
    end = ORDERS[0] * LAST_BYTES

    assert training.distance("Wherefore? " * LAST_BYTES + end) == training.distance(end)


def test_a_file_says_the_same(tmp_path: Path) -> None:
    training = Familiarity.of(ORDERS)
    training.save(tmp_path / "training.npz")

    read = Familiarity.load(tmp_path / "training.npz")

    assert read.distance("where is it") == training.distance("where is it")


@pytest.mark.parametrize("kind", ["none", "text", "other", "newer"])
def test_a_file_that_is_none_of_ours_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "training.npz"
    if kind == "text":
        path.write_text("no")
    elif kind == "other":
        np.savez(path, x=1)
    elif kind == "newer":
        np.savez(path, version=2, num_prompts=1, counts=np.zeros(3))

    with pytest.raises(ConfigError, match=r"training.npz"):
        Familiarity.load(path)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"prompt": "one"}, "one"),
        ({"prompt": ["one", "two"]}, "one\ntwo"),
        ({"prompt": [1, 2, 3]}, ""),
        ({"messages": [{"content": "one"}, {"content": None}, "no"]}, "one"),
        (
            {
                "messages": [
                    {"content": [{"text": "one"}, {"image_url": {}}, "x"]},
                    {"content": "2"},
                ]
            },
            "one\n2",
        ),
        ({"messages": "no"}, ""),
        ({}, ""),
    ],
)
def test_the_words_of_a_request_are_found(request_: dict[str, object], text: str) -> None:
    assert prompt_text(request_) == text
