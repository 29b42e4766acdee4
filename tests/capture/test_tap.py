"""The name behind which the tap's adapters are: which of an engine's processes records."""

from pathlib import Path

import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

from capture.errors import ConfigError
from capture.tap import LogitTap, SilentTap
from tests.support.tap import rows
from tests.support.v2_runner import Request, V2Runner, config

TAGGED = SamplingParams(max_tokens=2, extra_args={"retort": "x"})
FOUR = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_of_an_engines_processes_the_others_record_nothing(spool: Path, rank: int) -> None:
    tap = LogitTap(config(rank, **FOUR), torch.device("cpu"), False)
    added = [(0, TAGGED, [5, 6], list[int]())]
    logits = torch.randn(1, 50)

    tap.update_state(BatchUpdate(batch_size=1, removed=(), added=added, moved=()))

    assert tap.apply(logits) is logits
    assert not tap.is_argmax_invariant()
    assert not spool.exists()


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_under_the_v2_runner_they_record_nothing_either(spool: Path, rank: int) -> None:
    runner = V2Runner(2, 64, seed=0)
    tap = LogitTap(config(rank, **FOUR), runner.states)
    runner.waiting += [Request(TAGGED, [5, 6])]

    while not runner.is_done:
        runner.step(tap)

    assert not spool.exists()


def test_one_process_of_the_last_stage_records(spool: Path) -> None:
    runner = V2Runner(2, 64, seed=0)
    tap = LogitTap(config(2, **FOUR), runner.states)
    runner.waiting += [Request(TAGGED, [5, 6])]

    while not runner.is_done:
        runner.step(tap)
    tap._recorder.close()

    assert list(rows(spool)) == [("x", 0)]


def test_all_processes_ask_for_the_same_way_through_the_sampler() -> None:
    others = SilentTap()

    assert others.add_request(0, TAGGED)
    assert not others.add_request(1, SamplingParams())


def test_an_engine_none_of_whose_processes_sees_every_row_is_refused(spool: Path) -> None:
    sharded = config(tensor_parallel_size=2, enable_batch_sharded_sampling=True)

    with pytest.raises(ConfigError, match="enable-batch-sharded-sampling"):
        LogitTap(sharded, V2Runner(2, 64, seed=0).states)

    assert not spool.exists()
