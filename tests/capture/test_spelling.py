"""Rows from servers that name tokens by their text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from capture.errors import ConfigError
from capture.schema import Flag
from capture.spelling import Spelling
from capture.wire import CHAT, Origin, WireAnswer, WireRequest
from tests.support.tiny_model import SPECIAL, TEMPLATE

ORIGIN = Origin("x", "2026-11-24", "rev", "tok", k_min=1, k_max=64, mass=0.999)
MESSAGES = [{"role": "user", "content": "a b"}]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with bytes, ``ab``, and ``a`` with the first byte of many a character."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *letters, "ab", "a\u00c3"]
    merges = [("a", "b"), ("a", "\u00c3")]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL[1],
        additional_special_tokens=list(SPECIAL[2:]),
        chat_template=TEMPLATE,
    )
    home = tmp_path_factory.mktemp("spelling")
    fast.save_pretrained(home)
    return home


@pytest.fixture(scope="module")
def spelling(folder: Path) -> Spelling:
    return Spelling.open(folder)


def heard(spelling: Spelling, text: str, *positions: Json, **more: object) -> WireAnswer:
    """An answer that has been listened to, and whose prompt has been read."""
    request = WireRequest.of(CHAT, {"messages": MESSAGES})
    assert request is not None
    answer = WireAnswer(request, spelling)
    choice = {"index": 0, "message": {"content": text}, "finish_reason": "length"}
    choice["logprobs"] = {"content": list(positions)}
    usage = {"prompt_tokens": 5, "completion_tokens": len(positions)}
    answer.take({"choices": [choice | more], "usage": usage})
    assert answer.lacks_prompt
    answer.tell_prompt(spelling.prompt_ids({"messages": MESSAGES}))
    return answer


def position(**top: float) -> Json:
    """A position whose sampled token comes first; ``_`` stands for no text at all."""
    entries = [{"token": name.strip("_"), "logprob": value} for name, value in top.items()]
    return {**entries[0], "top_logprobs": entries}


def test_tokens_become_ids_and_the_prompt_is_read_as_its_model_reads_it(
    spelling: Spelling, folder: Path
) -> None:
    answer = heard(spelling, "abc", position(c=-0.1, ab=-2.5), position(ab=-0.5, b=-1.5))
    (row,), unidentified = heard(
        spelling, "abc", position(ab=-0.1, c=-2.5), position(c=-0.5, b=-1.5)
    ).rows(ORIGIN)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert (unidentified, row.flags) == (0, 0)
    assert row.prompt_ids.tolist() == prompt
    assert row.completion_ids.tolist() == ids(["ab", "c"])
    assert row.topk_ids.tolist() == ids(["ab", "c", "c", "b"])
    assert answer.rows(ORIGIN) == ([], 1)  # its tokens do not spell what was said


def test_candidates_end_at_the_first_that_may_be_another_token(spelling: Spelling) -> None:
    # "a" is what the server calls "a" with a byte of a longer character, too.
    (row,), _ = heard(
        spelling, "bab", position(b=-0.5, a=-1.5, c=-3.0), position(ab=-0.5, _=-1.5, c=-3.0)
    ).rows(ORIGIN)
    (sure,), _ = heard(spelling, "a", position(a=-0.5, c=-1.5)).rows(ORIGIN)

    assert row.topk_size.tolist() == [1, 1]
    assert np.exp(row.tail_logprob) == pytest.approx([1 - np.exp(-0.5)] * 2, abs=1e-6)
    assert sure.topk_size.tolist() == [2]  # it was sampled, and spells what was said


def test_half_a_character_is_not_recorded(spelling: Spelling) -> None:
    answer = heard(spelling, "a\u00e9", position(a=-0.5), position(_=-0.1))

    assert answer.rows(ORIGIN) == ([], 1)


def test_an_answer_that_ended_by_itself_lacks_its_last_position(spelling: Spelling) -> None:
    (row,), _ = heard(spelling, "ab", position(ab=-0.1), finish_reason="stop").rows(ORIGIN)

    assert row.flags == Flag.INCOMPLETE


def test_a_prompt_that_was_counted_otherwise_is_not_believed(spelling: Spelling) -> None:
    request = WireRequest.of(CHAT, {})
    assert request is not None
    answer = WireAnswer(request, spelling)
    choice = {"message": {"content": "b"}, "logprobs": {"content": [position(b=-0.1)]}}
    answer.take({"choices": [choice], "usage": {"prompt_tokens": 6, "completion_tokens": 1}})

    answer.tell_prompt([1, 2, 3])

    assert answer.rows(ORIGIN) == ([], 1)


@pytest.mark.parametrize(
    "parsed",
    [
        {"messages": MESSAGES, "tools": [{"type": "function"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        {"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]},
        {"messages": "a"},
        {"prompt": [1, 2]},
        {},
    ],
)
def test_what_only_the_server_can_render_is_left_to_it(spelling: Spelling, parsed: Json) -> None:
    assert spelling.prompt_ids(parsed) is None


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer\.json there"):
        Spelling.open(tmp_path)
