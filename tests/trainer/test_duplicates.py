import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash, MinHashLSH

from tests.support.repeated_rows import TEXT, repeated
from trainer.dataset import is_heldout
from trainer.duplicates import Duplicates, common_beginning, distinct, probed
from trainer.retokenizer import ragged

NOBODY = 0.0  # is held out
PROMPT = list(range(20))


def table(*rows: tuple[list[int], list[int]]) -> pa.Table:
    kind = pa.list_(pa.int32())
    columns = (pa.array(column, kind) for column in zip(*rows, strict=True))
    return pa.table(dict(zip(TEXT, columns, strict=True)))


def kept(rows: pa.Table, heldout_fraction: float, duplicates: Duplicates) -> list[int]:
    return [
        row for row, is_kept in enumerate(distinct(rows, heldout_fraction, duplicates)) if is_kept
    ]


@pytest.mark.parametrize(
    ("duplicates", "expected"), [("drop_exact", [0, 1, 3]), ("drop_near", [0, 1])]
)
def test_the_first_of_each_kind_stays(duplicates: Duplicates, expected: list[int]) -> None:
    answers = list(range(100, 140)), list(range(300, 340))
    nearly = [*answers[1][:-1], 7]
    rows = table(*((PROMPT, answer) for answer in (*answers, answers[0], nearly)))

    assert kept(rows, NOBODY, duplicates) == expected


def test_prompts_are_compared_whole_where_only_equal_ones_go() -> None:
    answer = list(range(100, 140))
    asked = [[*PROMPT, 50, 51], [50, 51], [*PROMPT, 60], [*PROMPT, 70], [*PROMPT, 50, 51]]
    rows = table(*((prompt, answer) for prompt in asked))

    assert kept(rows, NOBODY, "drop_exact") == [0, 1, 2, 3]


def test_what_is_like_a_held_out_answer_is_not_learned() -> None:
    answer = list(range(100, 160))
    prompts = [[first, *PROMPT] for first in range(40)]
    out, learned = (
        next(one for one in prompts if is_heldout(one, 0.5) == side) for side in (True, False)
    )
    rows = table((learned, answer), (learned, answer[::-1]), (out, answer), (out, answer))

    assert kept(rows, 0.5, "drop_near") == [1, 2, 3]
    assert kept(rows, 0.5, "drop_exact") == [0, 1, 2, 3]


@pytest.mark.parametrize("length", [0, 300, 2000])
def test_a_system_prompt_that_most_share_makes_no_duplicates(length: int) -> None:
    random = np.random.default_rng(0)

    def drawn(size: int) -> list[int]:
        found: list[int] = random.integers(0, 30000, size).tolist()
        return found

    system, other = drawn(length), drawn(length)
    rows = [([*(other if row % 3 == 0 else system), *drawn(40)], drawn(30)) for row in range(24)]
    again = [(prompt, [*answer[:-1], 7]) for prompt, answer in rows]

    assert len(kept(table(*rows), NOBODY, "drop_near")) >= 17  # all that share the longer part
    shared = [row for number, row in enumerate(rows) if number % 3]
    assert len(kept(table(*shared), NOBODY, "drop_near")) == len(shared)
    assert kept(table(*shared, *again), NOBODY, "drop_near")[: len(shared)] == [*range(16)]
    assert not [row for row in kept(table(*rows, *again), NOBODY, "drop_near") if row >= 24]


def test_what_most_prompts_begin_with_is_told_by_a_thousand_of_them() -> None:
    begin = [5, 6, 7]
    prompts = [[*begin, 8], [*begin, 9], begin, [5, 6], [1]]

    assert common_beginning(ragged(prompts)).tolist() == begin
    assert common_beginning(ragged([[1], [2]])).tolist() == []
    assert common_beginning(ragged([[1, 2]])).tolist() == [1, 2]
    assert np.flatnonzero(probed(3, "drop_near")).tolist() == [0, 1, 2]
    assert probed(123_456, "drop_near").sum() == 1000
    assert probed(0, "drop_near").sum() == 0


def test_a_short_answer_is_like_itself_only() -> None:
    rows = table(*(([first], [9]) for first in (1, 2, 3, 1, 2, 3)))

    assert kept(rows, NOBODY, "drop_near") == [0, 1, 2]


def test_similar_is_what_an_index_of_datasketch_finds() -> None:
    rows = repeated(400)
    is_kept = distinct(rows, 0.2, "drop_near")

    index, expected = MinHashLSH(threshold=0.8, num_perm=128), []
    texts = [(row[TEXT[0]], row[TEXT[1]]) for row in rows.to_pylist()]
    out = [is_heldout(prompt, 0.2) for prompt, _ in texts]
    for number in sorted(range(len(texts)), key=lambda number: not out[number]):
        prompt, answer = texts[number]
        ids = np.array([*prompt, -1, *answer], "<i4")
        sketch = MinHash(num_perm=128)
        sketch.update_batch({ids[at : at + 5].tobytes() for at in range(len(ids) - 4)})
        if out[number] or not index.query(sketch):
            index.insert(number, sketch)
            expected.append(number)
    assert 100 < len(expected) < 300
    assert np.flatnonzero(is_kept).tolist() == sorted(expected)
