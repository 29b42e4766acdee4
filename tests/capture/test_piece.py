"""``cut`` against a row-by-row version of the rule: the last row of each position counts."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from capture.adaptive import Limits
from capture.choice import Choice, TapConfig
from capture.piece import Piece, Rows, cut
from capture.schema import Flag

CONFIG = TapConfig(spool=Path("unused"), model_revision="rev", tokenizer_hash="tok")
ARRIVALS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(1, 4)), min_size=1, max_size=40
)


def rows_of(arrivals: list[tuple[int, int, int]]) -> Rows:
    """Each arrival is (owner, position, candidates); a row's ids tell which arrival it was."""
    steps = []
    for number, (owner, position, width) in enumerate(arrivals):
        ids = np.arange(width, dtype=np.int32)[None] + 10 * number
        logprobs = np.log(np.full((1, width), 0.9 / width, np.float32))
        draws = np.full((1, 2), number, np.int32)
        place = (np.array([owner]), np.array([position], np.int32))
        steps.append(Rows.chosen(*place, (ids, logprobs, draws), Limits(1, 64, 0.5)))
    return Rows.joined(steps)


def held(array: npt.NDArray[Any]) -> int:
    """Bytes that an array keeps from being freed."""
    base = array if array.base is None else array.base
    return base.nbytes


def test_steps_without_a_row_to_keep_have_no_piece() -> None:
    rows = rows_of([(1, 0, 2)])

    assert list(cut(rows.taken(np.arange(0)))) == []


@given(ARRIVALS)
def test_no_piece_keeps_the_rows_of_others_in_memory(arrivals: list[tuple[int, int, int]]) -> None:
    for _, piece in cut(rows_of(arrivals)):
        arrays = [getattr(piece, name) for name in Piece.__slots__ if name != "first"]
        assert sum(held(array) for array in arrays) == piece.num_bytes


@given(ARRIVALS)
def test_pieces_hold_the_last_row_of_every_position(arrivals: list[tuple[int, int, int]]) -> None:
    rows = rows_of(arrivals)
    last = {(owner, position): number for number, (owner, position, _) in enumerate(arrivals)}

    found = {}
    for owner, piece in cut(rows):
        start = 0
        for n, size in enumerate(piece.size_n):
            ids = piece.ids_E[start : start + size].tolist()
            found[owner, piece.first + n] = (ids, piece.draws_nD[n].tolist())
            start += size
        assert start == len(piece.ids_E) == len(piece.logprobs_E)

    kept = np.split(rows.ids_E, rows.size_R.cumsum())
    assert found == {key: (kept[number].tolist(), [number] * 2) for key, number in last.items()}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1), st.integers(1, 5))
def test_rejected_drafts_are_replaced_however_steps_are_batched(
    steps: list[tuple[int, int]], batch: int
) -> None:
    """Speculative steps of 1 + drafts rows, of which the accepted drafts' rows stay."""
    choice = Choice("x", 0, [], [], frozenset(), 1000, Flag(0), touched_at=0.0)
    position, expected = 0, dict[int, int]()
    made = []
    for number, (drafts, accepted) in enumerate(steps):
        positions = np.arange(position, position + drafts + 1, dtype=np.int32)
        owners, rows = np.full(len(positions), choice.serial), len(positions)
        ids_RK, draws_RD = np.full((rows, 1), number, np.int32), np.empty((rows, 0), np.int32)
        top = (ids_RK, np.zeros((rows, 1), np.float32), draws_RD)
        made.append(Rows.chosen(owners, positions, top, Limits(1, 64, 1.0)))
        expected.update(dict.fromkeys(positions.tolist(), number))
        position += min(accepted, drafts) + 1
    for start in range(0, len(made), batch):
        for _, piece in cut(Rows.joined(made[start : start + batch])):
            choice.extend(piece)
    choice.output_ids += [7] * position  # what the engine kept

    row = choice.to_row(CONFIG, "2026-01-01")

    assert not choice.flags
    assert row.topk_ids.tolist() == [expected[n] for n in range(position)]
