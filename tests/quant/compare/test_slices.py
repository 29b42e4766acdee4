from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from quant.compare.slices import by_label, by_quantile, entropies
from quant.heldout import MIN_SLICE_ROWS
from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.dataset import from_table


def test_labels_with_enough_rows_are_slices_the_largest_first() -> None:
    labels = ["b"] * 30 + ["a"] * 20 + [None] * 25 + ["few"] * 19

    found = by_label("tenant", labels)

    assert [(each.label, len(each.rows)) for each in found] == [
        ("tenant b", 30),
        ("tenant none", 25),
        ("tenant a", 20),
    ]
    assert found[0].rows.tolist() == list(range(30))


def test_what_all_rows_share_is_no_slice() -> None:
    assert by_label("route", ["support"] * 90) == []
    assert by_quantile("length", np.full(200, 3.0, np.float64)) == []
    assert by_quantile("length", np.arange(39, dtype=np.float64)) == []


def test_tenths_are_in_order_and_named() -> None:
    values = np.random.default_rng(0).permutation(400).astype(np.float64)

    found = by_quantile("rarity", values, unit="nats")

    assert [len(each.rows) for each in found] == [40] * 10
    assert found[0].name == "1 of 10: 0 to 39 nats"
    assert found[9].name == "10 of 10: 360 to 399 nats"
    assert values[found[9].rows].min() == 360


@given(
    st.lists(st.sampled_from([0.5, 1, 2, 3, 5, 8, 13]), min_size=40, max_size=300),
    st.integers(2, 10),
)
def test_groups_do_not_overlap_nor_part_equal_values(values: list[float], groups: int) -> None:
    array = np.array(values, np.float64)

    found = by_quantile("x", array, groups)

    rows = np.concatenate([each.rows for each in found]) if found else np.array([], int)
    assert len(set(rows.tolist())) == len(rows)
    assert len({each.label for each in found}) == len(found)
    seen = [set(array[each.rows].tolist()) for each in found]
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert all(len(each.rows) >= MIN_SLICE_ROWS for each in found)


def test_entropy_is_that_of_entries_and_tail(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    dataset = from_table(answer(model, 3, tokens=4), model)
    held = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    found = entropies(dataset)

    for row in range(3):
        prompt, said = dataset.prompt_ids.row(row), dataset.completion_ids.row(row)
        ids = torch.tensor([[*prompt.tolist(), *said.tolist()]])
        probs = held(ids).logits[0, len(prompt) - 1 : -1].softmax(-1).detach()
        start, total = 0, 0.0
        for place, size in enumerate(dataset.topk_size.row(row).tolist()):
            kept = probs[place, dataset.topk_ids.row(row)[start : start + size].tolist()]
            classes = torch.cat([kept, 1 - kept.sum()[None]])
            total += float(torch.special.entr(classes).sum())
            start += size
        assert found[row] == pytest.approx(total / 4, abs=1e-3)
