"""The tap behind the V1 model runner's interface, where a real engine does not lead it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

from capture.tap import LogitTap
from capture.tap_v1 import V1Tap
from tests.capture.conftest import TapSettings
from tests.support.tap import assert_drawn_from_tail, rows
from tests.support.v2_runner import config

VOCABULARY = 50
PROMPT = [5, 6]


def record(steps: list[torch.Tensor]) -> V1Tap:
    """Three requests, the one in the middle untagged, each fed its likeliest tokens."""
    tap = LogitTap(config(), torch.device("cpu"), False)
    assert isinstance(tap, V1Tap)
    outputs: list[list[int]] = [[], [], []]
    added = [
        (slot, SamplingParams(max_tokens=len(steps), extra_args=tag), PROMPT, outputs[slot])
        for slot, tag in enumerate([{"retort": "a"}, None, {"retort": "b"}])
    ]
    tap.update_state(BatchUpdate(batch_size=3, removed=(), added=added, moved=()))
    for logits in steps:
        before = logits.clone()
        assert torch.equal(tap.apply(logits), before)
        for output, token in zip(outputs, logits.argmax(-1).tolist(), strict=True):
            output.append(token)
        tap.update_state(None)
    tap._recorder.close()
    return tap


def scores(count: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(3, VOCABULARY, generator=random) for _ in range(count)]


def assert_recorded(row: dict[str, Any], slot: int, steps: list[torch.Tensor]) -> None:
    assert row["completion_ids"] == [int(logits[slot].argmax()) for logits in steps]
    start = 0
    for logits, size in zip(steps, row["topk_size"], strict=True):
        expected = logits[slot].double().log_softmax(-1).numpy()
        ids = row["topk_ids"][start : start + size]
        assert ids == np.argsort(-expected, kind="stable")[:size].tolist()
        assert np.allclose(row["topk_logprobs"][start : start + size], expected[ids], atol=1e-5)
        start += size


def padded(logits: torch.Tensor) -> torch.Tensor:
    """A view into rows that are longer than the vocabulary, as vLLM's of a padded one are."""
    wide = torch.full((3, 64), 100.0)
    wide[:, :VOCABULARY] = logits
    return wide[:, :VOCABULARY]


def transposed(logits: torch.Tensor) -> torch.Tensor:
    return logits.T.contiguous().T


def every_other(logits: torch.Tensor) -> torch.Tensor:
    wide = torch.full((6, VOCABULARY), 100.0)
    wide[::2] = logits
    return wide[::2]


@pytest.mark.parametrize("lay_out", [torch.clone, padded, transposed, every_other])
def test_scores_are_read_where_they_lie(spool: Path, lay_out: Any) -> None:
    steps = scores(4)

    record([lay_out(logits) for logits in steps])

    found = rows(spool)
    assert {exchange for exchange, _ in found} == {"a", "b"}
    assert_recorded(found["a", 0], 0, steps)
    assert_recorded(found["b", 0], 2, steps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_it_is_summed(spool: Path, dtype: torch.dtype) -> None:
    steps = [logits.to(dtype) for logits in scores(3)]

    record([padded(logits).to(dtype) for logits in steps])

    assert_recorded(rows(spool)["b", 0], 2, steps)


def test_draws_come_from_the_tail(spool: Path, tap_settings: TapSettings) -> None:
    tap_settings(tail_draws=2)

    record(scores(5))

    for row in rows(spool).values():
        assert_drawn_from_tail(row, num_draws=2, vocabulary=VOCABULARY)


def test_of_a_choice_that_was_written_only_what_it_is_known_by_is_kept(spool: Path) -> None:
    tap = record(scores(3))

    assert set(rows(spool)) == {("a", 0), ("b", 0)}
    for (choice,) in tap._tagged.values():
        assert (choice.prompt_ids, choice._pieces, choice.refresh) == ((), [], None)
        assert len(choice.output_ids) == 3
