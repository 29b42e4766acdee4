import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from capture import recorder
from capture.choice import Choice, TapConfig
from capture.piece import Rows
from capture.recorder import Recorder
from capture.rows import LogitRow
from capture.schema import Flag

CONFIG = TapConfig(spool=Path("unused"), model_revision="rev", tokenizer_hash="tok", k_max=4)
STOP = 9


@dataclass
class Counts:
    started: int = 0
    dropped: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.started += 1

    def drop(self, reason: str) -> None:
        self.dropped.append(reason)


class Kept:
    """A spool that keeps its rows and tells when one has come."""

    def __init__(self) -> None:
        self.account = Counts()
        self.rows: list[LogitRow] = []
        self.arrived = threading.Semaphore(0)

    def offer(self, row: LogitRow, size_bytes: int) -> bool:
        assert size_bytes > 0
        self.rows.append(row)
        self.arrived.release()
        return True

    def close(self) -> None:
        self.closed = True


def choice(
    output_ids: list[int],
    *,
    max_tokens: int = 100,
    prompt_ids: Sequence[int] = (1, 2),
    start: int = 0,
) -> Choice:
    prompt, stop = list(prompt_ids), frozenset([STOP])
    return Choice("x", 0, prompt, output_ids, stop, max_tokens, Flag(0), 0.0, start=start)


def step(owners: list[Choice], *top: int) -> Rows:
    """One row per owner: the row's likeliest token and one more."""
    ids = np.array([[token, token + 100] for token in top], np.int32)
    logprobs = np.tile(np.log(np.array([0.7, 0.2995], np.float32)), (len(top), 1))
    return Rows.chosen(
        np.array([owner.serial for owner in owners]),
        np.array([len(owner.output_ids) for owner in owners], np.int32),
        (ids, logprobs, np.empty((len(top), 0), np.int32)),
        CONFIG.limits,
    )


def push(tap: Recorder, owners: list[Choice], *top: int) -> None:
    rows = step(owners, *top)
    tap.push(lambda: rows, num_bytes=16)


def test_a_choice_is_written_when_its_stop_token_comes() -> None:
    spool, output = Kept(), list[int]()
    tap = Recorder(spool, CONFIG)
    one = choice(output)
    tap.begin(one)
    for token in (5, 6, STOP):
        push(tap, [one], token)
        output.append(token)
    assert spool.arrived.acquire(timeout=5)
    tap.close()

    (row,) = spool.rows
    assert row.completion_ids.tolist() == [5, 6, STOP]
    assert row.topk_ids.tolist() == [5, 105, 6, 106, STOP, 109]
    assert row.topk_size.tolist() == [2, 2, 2]
    assert (row.prompt_ids.tolist(), row.flags, row.source) == ([1, 2], 0, "tap")
    assert (spool.account.started, spool.account.dropped) == (1, [])


def test_the_last_row_of_a_position_counts() -> None:
    spool, output = Kept(), list[int]()
    tap = Recorder(spool, CONFIG)
    one = choice(output, max_tokens=1)
    tap.begin(one)
    push(tap, [one], 50)  # of a partly prefilled prompt; its sample is discarded
    push(tap, [one], 7)
    output.append(7)
    assert spool.arrived.acquire(timeout=5)
    tap.close()

    assert spool.rows[0].topk_ids.tolist() == [7, 107]


def test_rows_of_one_step_go_to_their_owners() -> None:
    spool = Kept()
    outputs: list[list[int]] = [[], []]
    tap = Recorder(spool, CONFIG)
    owners = [choice(output, max_tokens=2) for output in outputs]
    for one in owners:
        tap.begin(one)
    for first, second in ((10, 20), (11, 21)):
        push(tap, owners, first, second)
        outputs[0].append(first)
        outputs[1].append(second)
    assert all(spool.arrived.acquire(timeout=5) for _ in owners)
    tap.close()

    assert sorted(row.topk_ids.tolist() for row in spool.rows) == [
        [10, 110, 11, 111],
        [20, 120, 21, 121],
    ]


def test_an_unfinished_choice_is_written_once_it_has_gone_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "LINGER_SECONDS", 0.1)
    spool, output = Kept(), list[int]()
    tap = Recorder(spool, CONFIG)
    one = choice(output)
    one.is_scheduled = False
    tap.begin(one)
    push(tap, [one], 5)
    output.append(5)
    assert spool.arrived.acquire(timeout=5)
    push(tap, [one], 6)  # it was only preempted
    output.append(6)
    assert spool.arrived.acquire(timeout=5)
    tap.close()

    assert [row.completion_ids.tolist() for row in spool.rows] == [[5], [5, 6]]
    assert spool.account.started == 2


def test_a_preempted_choice_is_continued_by_one_of_the_same_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(recorder, "LINGER_SECONDS", 0.0)
    spool = Kept()
    tap = Recorder(spool, CONFIG)
    first, second = choice([], prompt_ids=[1]), choice([], prompt_ids=[2])
    for one, top in ((first, 10), (second, 20)):
        tap.begin(one)
        push(tap, [one], top)
        one.output_ids.append(7)
        one.is_scheduled = False
        assert spool.arrived.acquire(timeout=5)
    for one, top in ((second, 21), (first, 11)):
        rest = choice([7], max_tokens=2, prompt_ids=one.prompt_ids, start=1)
        tap.begin(rest)
        push(tap, [rest], top)
        rest.output_ids.append(8)
        assert spool.arrived.acquire(timeout=5)
    tap.close()

    assert [(row.prompt_ids.tolist(), row.topk_ids.tolist()) for row in spool.rows[2:]] == [
        ([2], [20, 120, 21, 121]),
        ([1], [10, 110, 11, 111]),
    ]


def test_a_missing_step_flags_the_choice() -> None:
    spool = Kept()
    tap = Recorder(spool, CONFIG)
    one = choice([], max_tokens=3)
    tap.begin(one)
    push(tap, [one], 5)
    one.output_ids += [5, 6]
    push(tap, [one], 7)  # position 2, position 1 was dropped
    tap.close()

    assert spool.rows[-1].flags & Flag.INCOMPLETE


def test_a_choice_without_a_row_is_counted_as_dropped() -> None:
    spool = Kept()
    tap = Recorder(spool, CONFIG)
    tap.begin(choice([]))
    tap.close()

    assert spool.account.dropped == ["empty"]


def wait_for(event: threading.Event, rows: Rows) -> Rows:
    assert event.wait(5)
    return rows


def test_more_than_the_bound_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MAX_PENDING_BYTES", 32)
    spool, blocked = Kept(), threading.Event()
    tap = Recorder(spool, CONFIG)
    one = choice([], max_tokens=50)
    tap.begin(one)
    for _ in range(6):
        rows = step([one], 1)
        tap.push(partial(wait_for, blocked, rows), num_bytes=16)
        one.output_ids.append(1)
    blocked.set()
    tap.close()

    assert len(spool.rows[-1].completion_ids) < 6


def test_choices_that_hold_too_much_are_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MAX_HELD_BYTES", 1)
    monkeypatch.setattr(recorder, "TICK_SECONDS", 0.001)
    spool, taken = Kept(), threading.Semaphore(0)
    tap = Recorder(spool, CONFIG)
    one = choice([], max_tokens=50)
    tap.begin(one)
    for _ in range(2):
        push(tap, [one], 1)
        tap.call(taken.release)
        assert taken.acquire(timeout=5)
        one.output_ids.append(1)
    tap.close()

    assert len(spool.rows[-1].completion_ids) == 1
    assert spool.rows[-1].flags & Flag.INCOMPLETE


def test_a_step_that_cannot_be_recorded_does_not_end_the_tap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load() -> Rows:
        raise ValueError("broken")

    monkeypatch.setattr(recorder, "MAX_PENDING_BYTES", 16)  # no room while it holds its own
    spool = Kept()
    tap = Recorder(spool, CONFIG)
    broken, one = choice([], max_tokens=1), choice([], max_tokens=1)
    tap.begin(broken)
    tap.push(load, num_bytes=16)
    broken.output_ids.append(66)
    while tap._pending:
        threading.Event().wait(0.001)
    tap.begin(one)
    push(tap, [one], 7)
    one.output_ids.append(7)
    assert spool.arrived.acquire(timeout=5)
    tap.close()

    assert [row.completion_ids.tolist() for row in spool.rows] == [[7]]
    assert spool.account.dropped == ["empty"]
