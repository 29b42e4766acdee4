"""What a cascade makes of an answer as it passes, and of its configuration."""

import json
from pathlib import Path
from typing import Any

import pytest

from capture.confidence import FIRST_TOKENS
from capture.errors import ConfigError
from gateway.cascade import Cascade, CascadeConfig
from gateway.config import load
from tests.gateway.test_cascade import CHAT
from tests.gateway.test_relay import chat


def listening(threshold: float = -1.0, **asked: object) -> Cascade:
    config = CascadeConfig(route="large", threshold=threshold, stream_threshold=threshold)
    planned = Cascade.of(config, CHAT, chat("hi", **asked))
    assert planned is not None
    return planned


def piece(*logprobs: float, index: int = 0, end: str | None = None) -> dict[str, Any]:
    told = {"content": [{"logprob": logprob} for logprob in logprobs]}
    delta = {"content": "x"}
    choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": end}
    return {"choices": [choice]}


@pytest.mark.parametrize(
    ("body", "lowest"),
    [
        ({"choices": [{"logprobs": {"content": [{"logprob": -1.0}, {"logprob": -3.0}]}}]}, -2.0),
        ({"choices": [{"logprobs": {"token_logprobs": [-0.5]}}]}, -0.5),
        (
            {
                "choices": [
                    {"index": 0, "logprobs": {"token_logprobs": [-0.5]}},
                    {"index": 1, "logprobs": {"token_logprobs": [-4.0]}},
                ]
            },
            -4.0,  # the least sure of several
        ),
    ],
)
def test_confidence_is_the_mean_of_an_answers_logprobs(body: Any, lowest: float) -> None:
    for threshold, is_sure in ((lowest, True), (lowest + 0.01, False)):
        cascade = listening(threshold)
        cascade.take(json.loads(json.dumps(body)))
        assert cascade.is_sure(is_over=False) is None
        assert cascade.is_sure(is_over=True) is is_sure


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {"content": []}}]},
        {"choices": [{"logprobs": {"content": None}}]},
        {"choices": [piece(-0.1)["choices"][0], {"index": 1, "text": "yes"}]},
        {"choices": ["no"]},
        {"choices": []},
        {},
    ],
)
def test_an_answer_that_does_not_tell_is_not_sure(body: Any) -> None:
    for stream in (False, True):
        cascade = listening(-100.0, stream=stream)
        cascade.take(body)
        assert cascade.is_sure(is_over=True) is False


def test_a_stream_is_weighed_by_its_first_tokens() -> None:
    cascade = listening(stream=True)
    for _ in range(FIRST_TOKENS - 1):
        cascade.take(piece(-0.9))
        assert cascade.is_sure(is_over=False) is None
    cascade.take(piece(-0.9))
    assert cascade.is_sure(is_over=False) is True
    cascade.take(piece(*[-50.0] * 100))
    assert cascade.is_sure(is_over=True) is True


def test_a_stream_that_cannot_become_sure_any_more_is_not_waited_for() -> None:
    cascade = listening(stream=True)
    cascade.take(piece(-10.0))
    assert cascade.is_sure(is_over=False) is None
    cascade.take(piece(-6.1))
    assert cascade.is_sure(is_over=False) is False


@pytest.mark.parametrize(("logprob", "is_sure"), [(-0.9, True), (-1.1, False)])
def test_a_stream_that_ends_early_is_weighed_by_what_there_is(
    logprob: float, is_sure: bool
) -> None:
    cascade = listening(stream=True)
    cascade.take(piece(logprob, end="stop"))
    assert cascade.is_sure(is_over=False) is is_sure


def test_a_stream_of_several_choices_waits_for_each() -> None:
    cascade = listening(stream=True, n=2)
    cascade.take(piece(*[-0.1] * FIRST_TOKENS))
    assert cascade.is_sure(is_over=False) is None
    cascade.take(piece(-3.0, index=1))
    assert cascade.is_sure(is_over=False) is None
    cascade.take(piece(-3.0, index=1, end="stop"))
    assert cascade.is_sure(is_over=False) is False


def test_what_only_carries_logprobs_is_taken_out_and_all_is_kept_that_was_asked_for() -> None:
    empty = piece(-0.5)
    empty["choices"][0]["delta"] = {}
    assert listening(stream=True).take(json.loads(json.dumps(empty))) is None
    shown = listening(stream=True).take(piece(-0.5))
    assert shown is not None
    assert shown["choices"][0]["logprobs"] is None
    own = listening(stream=True, logprobs=True)
    assert own.take(json.loads(json.dumps(empty))) == empty


@pytest.mark.parametrize(
    "more", [{"stream": True}, {"echo": True}, {"use_beam_search": True}, {"top_logprobs": 3}]
)
def test_what_does_not_tell_is_not_weighed(more: dict[str, object]) -> None:
    assert Cascade.of(CascadeConfig(route="large", threshold=-1), CHAT, chat("hi", **more)) is None


@pytest.mark.parametrize(
    ("support", "large", "said"),
    [
        (
            'cascade = {route = "huge", threshold = -1}',
            "",
            "'huge', expected another route; there are: large",
        ),
        ('cascade = {route = "support", threshold = -1}', "", "expected another route"),
        ('cascade = {route = "large", threshold = 0.5}', "", "less than or equal to 0"),
        ('cascade = {route = "large"}', "", "stream_threshold, or distance"),
        ('cascade = {route = "large", distance = 1}', "", "distance and training go together"),
        (
            'cascade = {route = "large", threshold = -1}',
            'cascade = {route = "support", stream_threshold = -1}',
            "which has a cascade itself",
        ),
        (
            'capture = "wire"\ncascade = {route = "large", threshold = -1}',
            "",
            "read the same field",
        ),
    ],
)
def test_a_wrong_cascade_is_named(tmp_path: Path, support: str, large: str, said: str) -> None:
    path = tmp_path / "retort.toml"
    path.write_text(
        f'[gateway.routes.support]\nurl = "http://127.0.0.1:1"\n{support}\n'
        f'[gateway.routes.large]\nurl = "http://127.0.0.1:2"\n{large}\n'
    )

    with pytest.raises(ConfigError, match="cascade") as raised:
        load(path)
    assert said in str(raised.value)
