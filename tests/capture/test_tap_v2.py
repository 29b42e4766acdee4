"""The tap behind the V2 model runner's interface: every position once, as it was computed."""

import random
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as V1Interface
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2Interface

from capture import recorder
from capture.schema import Flag
from capture.tap import LogitTap
from capture.tap_v2 import V2Tap
from tests.capture.conftest import TapSettings
from tests.support.tap import assert_drawn_from_tail, rows
from tests.support.v2_runner import EOS, VOCABULARY, Request, V2Runner, config, logits_after


def requests(count: int, seed: int) -> list[Request]:
    source = random.Random(seed)
    made = []
    for number in range(count):
        tag = {"retort": f"x{number}"} if number % 4 else None
        params = SamplingParams(max_tokens=source.randint(1, 20), extra_args=tag)
        made.append(Request(params, [source.randrange(4, 40) for _ in range(source.randint(1, 9))]))
    return made


def run(runner: V2Runner, wanted: list[Request]) -> V2Tap:
    tap = LogitTap(config(), runner.states)
    assert isinstance(tap, V2Tap)
    runner.waiting += wanted
    while not runner.is_done:
        runner.step(tap)
    tap._recorder.close()
    return tap


def assert_true(row: dict[str, Any], request: Request) -> None:
    assert row["flags"] == 0
    assert row["prompt_ids"] == request.prompt
    assert row["completion_ids"] == request.output
    start = 0
    for position, size in enumerate(row["topk_size"]):
        before = [*request.prompt, *request.output[:position]]
        expected = logits_after(before).double().log_softmax(-1).numpy()
        ids = row["topk_ids"][start : start + size]
        assert ids == np.argsort(-expected, kind="stable")[:size].tolist()
        assert np.allclose(row["topk_logprobs"][start : start + size], expected[ids], atol=1e-5)
        start += size
    assert start == len(row["topk_ids"])


def test_the_name_passes_both_loaders() -> None:
    assert issubclass(LogitTap, V1Interface)
    assert issubclass(LogitTap, V2Interface)


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("seed", range(6))
def test_every_position_is_recorded_once(spool: Path, seed: int, drafts: int) -> None:
    """Chunked prefill, slots used again, unscheduled steps, preemption, rejected drafts."""
    wanted = requests(40, seed)

    run(V2Runner(6, 64, seed, drafts=drafts), wanted)

    found = rows(spool)
    tagged = {f"x{n}": request for n, request in enumerate(wanted) if n % 4}
    assert {exchange for exchange, _ in found} == set(tagged)
    for (exchange, choice), row in found.items():
        assert choice == 0
        assert_true(row, tagged[exchange])


def test_siblings_are_kept_apart_even_when_preempted(spool: Path) -> None:
    tag = uuid.uuid4().hex
    prompts = [[5, 6, 7], [5, 6, 8], [5, 6, 9]]  # told apart by what follows
    wanted = [
        Request(SamplingParams(max_tokens=15, extra_args={"retort": tag}), prompt)
        for prompt in prompts
    ]

    run(V2Runner(3, 64, seed=4), wanted)

    found = rows(spool)
    assert len(found) == 3
    for row in found.values():
        (request,) = (one for one in wanted if one.prompt == row["prompt_ids"])
        assert_true(row, request)


class Steady(random.Random):
    """Has the runner schedule every request in every step, and preempt none."""

    def random(self) -> float:
        return 0.5


def test_siblings_are_numbered_as_they_came_however_soon_others_end(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "TICK_SECONDS", 0.1)  # longer than all of them take
    params = SamplingParams(max_tokens=3, extra_args={"retort": "x"})
    prompts = [[5, 6, 7 + number] for number in range(8)]
    runner = V2Runner(4, 64, seed=0)
    runner._random = Steady()

    run(runner, [Request(params, prompt) for prompt in prompts])

    found = rows(spool)
    assert [found["x", number]["prompt_ids"] for number in range(8)] == prompts


def test_nothing_of_a_choice_that_was_written_is_kept(spool: Path) -> None:
    tap = run(V2Runner(6, 64, seed=0), requests(12, seed=0))

    assert len(rows(spool)) == 9
    for (choice,) in tap._tagged.values():
        assert (choice.prompt_ids, choice.output_ids) == ((), [])
        assert (choice._pieces, choice.refresh) == ([], None)


def test_a_choice_is_written_although_the_engine_stands_still(spool: Path) -> None:
    wanted = requests(2, seed=1)
    runner = V2Runner(2, 64, seed=1)
    tap = LogitTap(config(), runner.states)
    runner.waiting += wanted
    while not runner.is_done:
        runner.step(tap)  # and no further step tells that the last one has left
    assert isinstance(tap, V2Tap)
    (choice,) = tap._choices.values()

    deadline = time.monotonic() + 5
    while not choice.is_closed and time.monotonic() < deadline:
        time.sleep(0.01)

    assert choice.is_closed
    tap._recorder.close()
    assert_true(rows(spool)["x1", 0], wanted[1])


def test_altered_logits_are_flagged(spool: Path) -> None:
    params = SamplingParams(max_tokens=4, logit_bias={EOS: -5.0}, extra_args={"retort": "x"})

    run(V2Runner(1, 64, seed=0), [Request(params, [5, 6])])

    assert rows(spool)["x", 0]["flags"] == Flag.BIASED


def test_draws_come_from_the_tail(spool: Path, tap_settings: TapSettings) -> None:
    tap_settings(tail_draws=3)
    wanted = requests(4, seed=2)

    run(V2Runner(2, 64, seed=2), wanted)

    found = rows(spool)
    assert {exchange for exchange, _ in found} == {"x1", "x2", "x3"}
    for row in found.values():
        assert_drawn_from_tail(row, num_draws=3, vocabulary=VOCABULARY)
