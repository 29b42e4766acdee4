import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from capture.log import Log
from capture.revision import model_revision
from quant.compare.rows import Choice, choose_rows
from quant.errors import ComparisonError
from tests.support.answered_rows import answer, write_log
from tests.support.tiny_model import make_tiny_model
from trainer.checkpoint import save_checkpoint
from trainer.dataset import is_heldout
from trainer.errors import ManifestError
from trainer.manifest import Lineage
from trainer.student import open_student

ALL = Choice("true", 400, 0.5)


@dataclass(frozen=True)
class Home:
    teacher: Path
    table: pa.Table
    log: Log


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("rows")
    teacher = make_tiny_model(folder / "teacher")
    table = answer(teacher, 60, tokens=3)
    # The first ten prompts are asked again.
    again = table.slice(0, 10)
    names = pa.array([f"again{row}" for row in range(10)])
    again = again.set_column(0, again.schema.field(0), names)
    whole = pa.concat_tables([table, again])
    write_log(whole, folder / "log", folder / "spool")
    return Home(teacher, table, Log(folder / "log"))


def with_config(folder: Path, **values: object) -> Path:
    """A model folder whose configuration says something else."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def test_rows_are_held_out_by_the_rule_of_training_each_prompt_once(home: Home) -> None:
    rows = choose_rows(home.log, home.teacher, home.teacher, ALL)

    prompts = home.table["prompt_ids"].to_pylist()
    wanted = {tuple(ids) for ids in prompts if is_heldout(ids, 0.5)}
    found = [tuple(rows.dataset.prompt_ids.row(row).tolist()) for row in range(len(rows.dataset))]
    assert set(found) == wanted
    assert len(found) == len(wanted) == rows.num_heldout
    assert rows.origins["route"] == ["support"] * len(found)
    assert rows.origins["tenant"] == [None] * len(found)
    assert rows.origins["endpoint"] == ["/v1/chat/completions"] * len(found)
    assert len(rows.rarity) == len(rows.exchange_ids) == len(found)


def test_fewer_rows_are_always_the_same_ones(home: Home) -> None:
    first, again, all_ = (
        choose_rows(home.log, home.teacher, home.teacher, Choice("true", number, 0.5))
        for number in (8, 8, 400)
    )

    assert first.exchange_ids == again.exchange_ids
    assert first.digest == again.digest
    assert len(first.exchange_ids) == 8
    assert set(first.exchange_ids) < set(all_.exchange_ids)
    rarity = dict(zip(all_.exchange_ids, all_.rarity, strict=True))
    assert np.allclose(first.rarity, [rarity[each] for each in first.exchange_ids])


def test_a_checkpoint_says_what_its_training_held_out(home: Home, tmp_path: Path) -> None:
    student = tmp_path / "checkpoint"
    lineage = Lineage(
        teacher_revision=model_revision(home.teacher), recipe={"heldout_fraction": 0.2}
    )
    model = open_student(home.teacher, home.teacher, torch.device("cpu"))
    save_checkpoint(model, home.teacher, student, lineage=lineage, quality={})

    rows = choose_rows(home.log, home.teacher, student, ALL)
    as_teacher = choose_rows(home.log, student, student, ALL)

    assert rows.heldout_fraction == 0.2
    assert all(
        is_heldout(rows.dataset.prompt_ids.row(row), 0.2) for row in range(len(rows.dataset))
    )
    # A model that did not answer itself is compared on what its teacher answered.
    assert as_teacher.exchange_ids == rows.exchange_ids
    (student / "config.json").write_text("{}")
    with pytest.raises(ManifestError, match=re.escape("config.json")):
        choose_rows(home.log, home.teacher, student, ALL)


def test_prompts_that_fill_the_context_of_both_models_are_left_out_and_counted(
    tmp_path: Path,
) -> None:
    teacher = with_config(make_tiny_model(tmp_path / "teacher"), max_position_embeddings=6)
    table = answer(teacher, 60, tokens=3)
    write_log(table, tmp_path / "log", tmp_path / "spool")
    log = Log(tmp_path / "log")
    student = Path(shutil.copytree(teacher, tmp_path / "student"))

    both = choose_rows(log, teacher, student, ALL)
    with_config(student, max_position_embeddings=7)
    wider = choose_rows(log, teacher, student, ALL)
    with_config(student, max_position_embeddings=3, rope_scaling={"factor": 4.0})
    stretched = choose_rows(log, teacher, student, ALL)

    prompts = [ids for ids in table["prompt_ids"].to_pylist() if is_heldout(ids, 0.5)]
    for rows, most in ((both, 5), (wider, 6), (stretched, 8)):
        assert rows.dataset.prompt_ids.lengths.max() == most
        assert rows.without_room == sum(len(ids) > most for ids in prompts)
        assert rows.num_heldout == len(prompts) == len(rows.dataset) + rows.without_room


def test_where_all_prompts_fill_both_contexts_nothing_is_compared(tmp_path: Path) -> None:
    model = with_config(make_tiny_model(tmp_path / "model"), max_position_embeddings=3)
    write_log(answer(model, 20, tokens=3), tmp_path / "log", tmp_path / "spool")

    with pytest.raises(ComparisonError, match=r"fill the context of both models, 3 tokens: give"):
        choose_rows(Log(tmp_path / "log"), model, model, ALL)


def test_what_cannot_be_compared_is_refused_with_a_reason(home: Home, tmp_path: Path) -> None:
    stranger = make_tiny_model(tmp_path / "stranger", seed=1)
    other = make_tiny_model(tmp_path / "other")
    tokenizer = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(tokenizer.replace('"version"', ' "version"', 1))

    with pytest.raises(ComparisonError, match=r"no config\.json there"):
        choose_rows(home.log, home.teacher, tmp_path / "nowhere", ALL)
    with pytest.raises(ComparisonError, match=r"other: tokenizer \w+, the teacher's is"):
        choose_rows(home.log, home.teacher, other, ALL)
    with pytest.raises(ComparisonError, match=f"only of {model_revision(home.teacher)}"):
        choose_rows(home.log, stranger, stranger, ALL)
    with pytest.raises(ComparisonError, match="none of the log's 70 examples"):
        choose_rows(home.log, home.teacher, home.teacher, Choice("true", 400, 0.0))
    with pytest.raises(ComparisonError, match="only of no model"):
        choose_rows(home.log, home.teacher, home.teacher, Choice("route = 'none'", 400, 0.5))
