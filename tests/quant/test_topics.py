import numpy as np
import pyarrow as pa

from quant.topics import ROWS_PER_TOPIC, name_topics, topics
from trainer.dataset import Ints, Ragged

ROWS = 60


def prompts(num_topics: int, seed: int = 0) -> tuple[Ragged, Ints]:
    """Prompts that begin alike and go on with words of their topic."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(num_topics), ROWS)
    rows = [[1, 2, 3, *(100 * topic + random.integers(0, 6, 12)).tolist()] for topic in truth]
    return Ragged.from_column(pa.chunked_array([pa.array(rows, pa.list_(pa.int32()))])), truth


def test_prompts_of_one_topic_come_together() -> None:
    rows, truth = prompts(3)

    found = topics(rows, seed=0)

    num = min(8, len(truth) // ROWS_PER_TOPIC)
    assert len(set(found.tolist())) == num == 4
    for group in range(num):
        inside = np.bincount(truth[found == group])
        assert inside.max() / inside.sum() > 0.9


def test_the_same_seed_gives_the_same_groups() -> None:
    rows, _ = prompts(3, seed=1)

    assert np.array_equal(topics(rows, seed=5), topics(rows, seed=5))


def test_few_prompts_are_one_topic() -> None:
    rows, truth = prompts(1)

    assert topics(rows, seed=0).tolist() == [0] * len(truth)


def test_prompts_that_are_all_alike_are_grouped_without_an_error() -> None:
    same = pa.chunked_array([pa.array([[1, 2, 3]] * 100, pa.list_(pa.int32()))])

    assert len(topics(Ragged.from_column(same), seed=0)) == 100


def test_topics_are_named_by_their_own_words() -> None:
    texts = ["please book a table for two"] * 3 + ["please play some jazz music"] * 3
    texts += ["1 + 1"] * 2

    names = name_topics(texts, np.array([0, 0, 0, 1, 1, 1, 2, 2]))

    assert names == {0: "1: book for table", 1: "2: jazz music play", 2: "3"}
