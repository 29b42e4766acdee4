from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import Dataset, from_table
from trainer.duplicates import distinct

NOBODY = np.array([], dtype=np.int64)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six different answers of 40 tokens; 0 again as 6; 1 but for its last token as 7."""
    teacher = make_tiny_model(tmp_path_factory.mktemp("duplicates") / "teacher")
    table = answer(teacher, 6, tokens=40)
    table = pa.concat_tables([table, table.slice(0, 1), table.slice(1, 1)])
    ids = table["completion_ids"].to_pylist()
    ids[7] = [*ids[7][:-1], (ids[7][-1] + 1) % 50]
    place = table.schema.get_field_index("completion_ids")
    column = pa.array(ids, type=table.schema.field(place).type)
    return from_table(table.set_column(place, table.schema.field(place), column), teacher)


@pytest.mark.parametrize(
    ("duplicates", "expected"),
    [
        ("keep", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("drop_exact", [0, 1, 2, 3, 4, 5, 7]),
        ("drop_near", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_first_of_each_kind_stays(
    repeated: Dataset, duplicates: str, expected: list[int]
) -> None:
    found = distinct(repeated, np.arange(8), NOBODY, duplicates)  # type: ignore[arg-type]

    assert found.tolist() == expected


def test_what_is_like_a_held_out_answer_is_not_learned(repeated: Dataset) -> None:
    rows = np.array([0, 1, 2, 3])

    assert distinct(repeated, rows, np.array([7]), "drop_near").tolist() == [0, 2, 3]
    assert distinct(repeated, rows, np.array([7]), "drop_exact").tolist() == [0, 1, 2, 3]


def test_a_short_answer_is_like_itself_only(tmp_path: Path) -> None:
    teacher = make_tiny_model(tmp_path / "teacher")
    table = answer(teacher, 3, tokens=1)
    dataset = from_table(pa.concat_tables([table, table]), teacher)

    assert distinct(dataset, np.arange(6), NOBODY, "drop_near").tolist() == [0, 1, 2]
