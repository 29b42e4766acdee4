import numpy as np
import pyarrow as pa

from trainer.dataset import Ragged
from trainer.rarity import rarity


def of(*prompts: list[int]) -> list[float]:
    column = pa.chunked_array([pa.array(prompts, pa.list_(pa.int32()))])
    return list(rarity(Ragged.from_column(column)))


def test_what_every_prompt_has_is_not_rare_and_what_one_has_is() -> None:
    found = of([1, 2, 3], [1, 2, 3], [1, 2, 3], [7, 8, 9])

    np.testing.assert_allclose(found, [-np.log(3 / 4)] * 3 + [np.log(4)])
    assert of([5, 6], [5, 6]) == [0.0, 0.0]


def test_a_pair_counts_once_in_a_prompt_and_not_across_two() -> None:
    assert of([1, 2, 1, 2, 1, 2], [1, 2, 1]) == of([1, 2, 1], [1, 2, 1])
    np.testing.assert_allclose(of([1, 2], [2, 1]), [np.log(2)] * 2)


def test_prompts_too_short_for_a_pair_are_not_rare() -> None:
    assert of([1], [], [1, 2]) == [0.0, 0.0, np.log(3)]
    assert of() == []
