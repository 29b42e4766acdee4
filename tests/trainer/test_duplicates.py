import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash, MinHashLSH

from tests.support.repeated_rows import TEXT, repeated
from trainer.dataset import is_heldout
from trainer.duplicates import Duplicates, distinct

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


def test_what_is_like_a_held_out_answer_is_not_learned() -> None:
    answer = list(range(100, 160))
    prompts = [[first, *PROMPT] for first in range(40)]
    out, learned = (
        next(one for one in prompts if is_heldout(one, 0.5) == side) for side in (True, False)
    )
    rows = table((learned, answer), (learned, answer[::-1]), (out, answer), (out, answer))

    assert kept(rows, 0.5, "drop_near") == [1, 2, 3]
    assert kept(rows, 0.5, "drop_exact") == [0, 1, 2, 3]


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
