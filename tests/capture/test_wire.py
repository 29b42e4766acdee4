import copy
from typing import Any

import numpy as np
import pytest

from capture.schema import Flag
from capture.wire import CHAT, TOP, Origin, WireAnswer, WireRequest

ORIGIN = Origin("x", "2026-11-24", "rev", "tok", k_min=1, k_max=64, mass=0.9)
COMPLETIONS = "/v1/completions"
Json = dict[str, Any]


def planned(parsed: Json | None = None, endpoint: str = CHAT) -> WireAnswer:
    request = WireRequest.of(endpoint, parsed or {})
    assert request is not None
    return WireAnswer(request)


def position(*entries: tuple[int, float]) -> Json:
    """A position whose sampled token comes first, as vLLM has it."""
    top = [{"token": f"token_id:{token}", "logprob": logprob} for token, logprob in entries]
    return {**top[0], "top_logprobs": top}


def whole(*positions: Json, **more: object) -> Json:
    choice = {
        "index": 0,
        "message": {"content": "hi"},
        "logprobs": {"content": list(positions)},
        "finish_reason": "stop",
        "token_ids": [1],
        **more,
    }
    return {"choices": [choice], "prompt_token_ids": [5, 6]}


def test_a_chat_is_asked_for_distributions_and_ids() -> None:
    request = planned().request

    assert request.added == {
        "logprobs": True,
        "top_logprobs": TOP,
        "return_tokens_as_token_ids": True,
        "return_token_ids": True,
    }
    assert planned(endpoint=COMPLETIONS).request.added["logprobs"] == TOP


def test_an_answer_becomes_a_row_of_the_fewest_entries_that_reach_the_mass() -> None:
    answer = planned()
    answer.take(whole(position((7, -1.5), (8, -0.4), (9, -3.0)), position((7, -0.01), (3, -6.0))))

    (row,), num_unidentified = answer.rows(ORIGIN)

    assert num_unidentified == 0
    assert (row.source, row.flags, row.choice) == ("wire", 0, 0)
    assert row.prompt_ids.tolist() == [5, 6]
    assert row.completion_ids.tolist() == [7, 7]
    assert row.topk_size.tolist() == [3, 1]
    assert row.topk_ids.tolist() == [8, 7, 9, 7]
    assert row.topk_logprobs == pytest.approx([-0.4, -1.5, -3.0, -0.01])
    left = [1 - np.exp([-0.4, -1.5, -3.0]).sum(), 1 - np.exp(-0.01)]
    assert np.exp(row.tail_logprob) == pytest.approx(left, abs=1e-6)


def test_completions_are_understood_in_their_own_form() -> None:
    answer = planned(endpoint=COMPLETIONS)
    logprobs = {"tokens": ["token_id:4"], "top_logprobs": [{"token_id:4": -2.0, "token_id:1": -1}]}
    choice = {"index": 1, "text": "a", "logprobs": logprobs, "prompt_token_ids": [3]}

    passed = answer.take({"choices": [{**choice, "finish_reason": "length"}]})

    (row,), _ = answer.rows(ORIGIN)
    assert (row.choice, row.topk_ids.tolist()) == (1, [1, 4])
    assert passed is not None
    assert passed["choices"][0]["logprobs"] is None
    assert passed["choices"][0]["prompt_token_ids"] is None


def test_only_what_the_client_did_not_ask_for_is_taken_out() -> None:
    document = whole(position((7, -0.1)))
    kept = planned({"return_token_ids": True}).take(copy.deepcopy(document))
    own = {"logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": True}
    asked = planned({**own, "return_token_ids": True})

    assert kept is not None
    assert kept["choices"][0]["token_ids"] == [1]
    assert kept["choices"][0]["logprobs"] is None
    assert asked.request.added == {}
    assert asked.take(copy.deepcopy(document)) == document
    assert len(asked.rows(ORIGIN)[0]) == 1


@pytest.mark.parametrize(
    ("endpoint", "parsed"),
    [
        (CHAT, {"logprobs": True}),
        (COMPLETIONS, {"logprobs": 0}),
        (COMPLETIONS, {"echo": True}),
    ],
)
def test_what_cannot_be_recorded_is_not_asked_for(endpoint: str, parsed: Json) -> None:
    assert WireRequest.of(endpoint, parsed) is None


def test_a_choice_without_ids_is_counted_and_not_recorded() -> None:
    words = planned()
    top = {"token": "hello", "logprob": -0.1}
    words.take(whole({**top, "top_logprobs": [top]}))
    promptless = planned()
    promptless.take({**whole(position((7, -0.1))), "prompt_token_ids": None})

    assert words.rows(ORIGIN) == ([], 1)
    assert promptless.rows(ORIGIN) == ([], 1)


def test_a_choice_that_breaks_off_or_lacks_positions_is_flagged() -> None:
    broken = planned()
    broken.take(whole(position((7, -0.1)), finish_reason=None))
    short = planned()
    short.take({**whole(position((7, -0.1))), "usage": {"completion_tokens": 2}})

    assert [answer.rows(ORIGIN)[0][0].flags for answer in (broken, short)] == [Flag.INCOMPLETE] * 2


@pytest.mark.parametrize(
    ("parsed", "flags"),
    [
        ({"response_format": {"type": "json_object"}}, Flag.MASKED),
        ({"response_format": {"type": "text"}, "tool_choice": "auto"}, Flag(0)),
        ({"tool_choice": "required"}, Flag.MASKED),
        ({"min_tokens": 3}, Flag.MASKED),
        ({"frequency_penalty": 0.5}, Flag.BIASED),
        ({"repetition_penalty": 1.0, "presence_penalty": 0}, Flag(0)),
    ],
)
def test_a_request_that_changes_the_logits_is_flagged(parsed: Json, flags: Flag) -> None:
    assert planned(parsed).request.flags == flags


def test_a_stream_event_that_only_carries_logprobs_is_left_out() -> None:
    answer = planned()
    event = {"index": 0, "delta": {}, "logprobs": {"content": [position((7, -0.1))]}}

    assert answer.take({"choices": [{**event, "finish_reason": None}]}) is None
    assert answer.take({"choices": [{**event, "finish_reason": "stop"}]}) is not None


def test_minus_infinity_is_no_entry() -> None:
    answer = planned()
    answer.take(whole(position((7, -0.5), (8, -9999.0))))

    (row,), _ = answer.rows(ORIGIN)
    assert row.topk_ids.tolist() == [7]
