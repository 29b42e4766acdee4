import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.config import CaptureConfig
from capture.distillkit import packed, unpacked
from capture.errors import LogError
from capture.examples import Row
from capture.export import Format, export
from capture.intake import import_examples
from capture.log import Log
from capture.rows import LogitRow
from capture.verify import verify
from tests.support.log_folders import config_in, filled
from tests.support.log_rows import exchange_row, logit_row

EXACT = ("exchange_id", "choice", "prompt_ids", "completion_ids", "topk_size", "topk_ids")
REQUEST = json.dumps({"model": "support", "messages": [{"role": "user", "content": "hi"}]})


def likely(row: LogitRow) -> LogitRow:
    """The same choice with distributions that could be: ids apart, a sum below one."""
    total = len(row.topk_ids)
    row.topk_ids[:] = np.arange(total) * 7 + 100
    row.topk_logprobs[:] = np.concatenate([-1.0 - 0.5 * np.arange(size) for size in row.topk_size])
    return row


@pytest.fixture
def config(tmp_path: Path) -> CaptureConfig:
    """A log of two exchanges, one of them with two choices."""
    (tmp_path / "a").mkdir()
    asked = [exchange_row("a", texts=("one", "two")), exchange_row("b", texts=("three",))]
    for row in asked:
        object.__setattr__(row, "request", REQUEST)
    choices = [logit_row("a"), logit_row("a", choice=1, sizes=(1, 4), seed=1)]
    choices.append(logit_row("b", sizes=(5,), seed=2))
    return filled(tmp_path / "a", asked, [likely(row) for row in choices])


def exported(config: CaptureConfig, file_format: Format, path: Path) -> Path:
    export(Log(config.log).snapshot(), path, file_format, lambda _: None)
    return path


def examples(config: CaptureConfig) -> list[Row]:
    with Log(config.log).connect() as connection:
        table = connection.sql("select * from examples order by exchange_id, choice")
        rows: list[Row] = table.to_arrow_table().to_pylist()
    return rows


def imported(config: CaptureConfig, file_format: Format, home: Path) -> CaptureConfig:
    path = exported(config, file_format, home / "exported")
    target = config_in(home / "b")
    import_examples(target, path, file_format, lambda _: None)
    return target


@pytest.mark.parametrize("file_format", [Format.JSONL, Format.PARQUET, Format.AXOLOTL])
def test_an_imported_log_gives_the_same_examples(
    config: CaptureConfig, file_format: Format, tmp_path: Path
) -> None:
    target = imported(config, file_format, tmp_path)

    assert examples(target) == examples(config)
    assert verify(target).problems == []
    assert verify(target).document()["complete_fraction"] == 1.0
    sources = Log(target.log).connect().sql("select distinct source from logits").fetchall()
    assert sources == [("import",)]


def test_distillkits_format_keeps_all_but_small_digits_of_the_tail(
    config: CaptureConfig, tmp_path: Path
) -> None:
    target = imported(config, Format.DISTILLKIT, tmp_path)

    for found, expected in zip(examples(target), examples(config), strict=True):
        tails = np.exp([found.pop("tail_logprob"), expected.pop("tail_logprob")])
        heads = np.add.reduceat(
            np.exp(np.array(found["topk_logprobs"])),
            np.append(0, np.cumsum(found["topk_size"])[:-1]).astype(int),
        )
        assert found == expected
        assert tails[0] == pytest.approx(1 - heads, abs=1e-3)


def test_distillkits_folder_is_what_its_loader_expects(
    config: CaptureConfig, tmp_path: Path
) -> None:
    folder = exported(config, Format.DISTILLKIT, tmp_path / "kit")

    table = pa.parquet.read_table(folder / "data_0.parquet")
    settings = (folder / "compression_config.yaml").read_text(encoding="utf-8")
    row = table.to_pylist()[0]
    assert "k: 5\n" in settings
    assert "exact_k: 5\n" in settings
    assert str(table.schema.field("bytepacked_indices").type) == (
        "list<element: list<element: uint8>>"
    )
    assert len(row["input_ids"]) - 1 == len(row["compressed_logprobs"])
    certain = np.array(row["compressed_logprobs"][0], np.uint8).view("<f4")
    assert certain.tolist() == [0.0, -80.0, -80.0, -80.0, -80.0]


def test_a_chat_comes_back_as_an_exchange_without_distributions(
    config: CaptureConfig, tmp_path: Path
) -> None:
    target = imported(config, Format.CHAT, tmp_path)

    with Log(target.log).connect() as connection:
        rows = connection.sql("select request, response_text[1], capture from exchanges").fetchall()
    assert {(json.loads(request)["messages"][0]["content"], *rest) for request, *rest in rows} == {
        ("hi", "one", "off"),
        ("hi", "two", "off"),
        ("hi", "three", "off"),
    }
    assert examples(target) == []


def test_importing_again_adds_nothing(config: CaptureConfig, tmp_path: Path) -> None:
    target = imported(config, Format.JSONL, tmp_path)

    again = import_examples(target, tmp_path / "exported", Format.JSONL, lambda _: None)

    assert (again.exchanges, again.choices, again.skipped) == (0, 0, 3)
    assert verify(target).problems == []


def test_axolotls_older_layout_is_read(config: CaptureConfig, tmp_path: Path) -> None:
    path = exported(config, Format.AXOLOTL, tmp_path / "lines")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        ids = line.pop("target_token_ids")
        line["logprobs"] = [
            [{"token": f"token_id:{t}", "logprob": p} for t, p in zip(*entry, strict=True)]
            for entry in zip(ids, line["logprobs"], strict=True)
        ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    target = config_in(tmp_path / "b")

    import_examples(target, path, Format.AXOLOTL, lambda _: None)

    assert examples(target) == examples(config)


@pytest.mark.parametrize(
    ("file_format", "text", "message"),
    [
        (Format.JSONL, "{", "line 1"),
        (Format.CHAT, '{"messages": [{"role": "user", "content": "x"}]}', "assistant's"),
        (Format.CHAT, "\n[]", "line 2: not a JSON object"),
        (Format.JSONL, '{"started_at": "yesterday"}', "row 1: not of this format"),
        (Format.AXOLOTL, '{"messages": []}', '"retort"'),
        (
            Format.AXOLOTL,
            '{"retort": {}, "logprobs": [[{"token": "the"}]]}',
            "row 1: not of this format",
        ),
        (Format.PARQUET, "PAR", "wrong"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, file_format: Format, text: str, message: str
) -> None:
    path = tmp_path / "wrong"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(LogError, match=message):
        import_examples(config_in(tmp_path), path, file_format, lambda _: None)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"exchange_id": None}, "exchange_id"),
        ({"exchange_id": ""}, "exchange_id"),
        ({"exchange_id": 7}, "exchange_id"),
        *(
            ({"day": day}, "day")
            for day in ("../../../escaped", "2026/11/24", "20261124", "2026-W48-2", "", 20261124)
        ),
        ({"choice": -1}, "choice"),
        ({"choice": 70_000}, "choice"),
        ({"choice": "first"}, "choice"),
        ({"started_at": "2026-11-24T12:00:00"}, "started_at"),
        ({"request": {"model": "support"}}, "a text"),
        ({"tail_logprob": None}, "lists of numbers"),
        ({"topk_ids": [-5, 1]}, "lists of numbers"),
        ({"topk_ids": [1.5, 1]}, "lists of numbers"),
        ({"topk_ids": "12"}, "lists of numbers"),
        ({"topk_ids": [None, None]}, "lists of numbers"),
        ({"topk_logprobs": [None, -1.0]}, "lists of numbers"),
        ({"topk_size": [70_000, 1]}, "lists of numbers"),
        ({"completion_ids": [5]}, "one topk_size"),
        ({"tail_logprob": [-1.0]}, "one topk_size"),
        ({"topk_size": []}, "one topk_size"),
        ({"topk_size": [0, 2]}, "topk_size of 1"),
        ({"topk_ids": [1]}, "topk_size of 1"),
        ({"topk_logprobs": [-1.0, -1.0, -1.0]}, "topk_size of 1"),
    ],
)
def test_a_row_that_the_log_cannot_hold_is_refused_by_its_number(
    config: CaptureConfig, tmp_path: Path, wrong: Row, expected: str
) -> None:
    path = exported(config, Format.JSONL, tmp_path / "lines")
    first, second, *_ = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    pair = {"completion_ids": [5, 6], "topk_size": [1, 1], "tail_logprob": [-2.0, -2.0]}
    entries = {"topk_ids": [5, 6], "topk_logprobs": [-0.5, -0.5]}
    lines = (first, {**second, "exchange_id": "wrong", **pair, **entries, **wrong})
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "b").mkdir()
    target = filled(tmp_path / "b", [exchange_row("good")], [logit_row("good")])

    with pytest.raises(LogError, match=rf"lines: row 2: expected {expected}"):
        import_examples(target, path, Format.JSONL, lambda _: None)

    assert [row["exchange_id"] for row in examples(target)] == ["good"]
    assert verify(target).problems == []


def test_a_row_without_an_id_is_refused(config: CaptureConfig, tmp_path: Path) -> None:
    path = exported(config, Format.JSONL, tmp_path / "lines")
    path.write_text('{"day": "2026-11-24"}', encoding="utf-8")

    with pytest.raises(LogError, match="row 1: expected exchange_id"):
        import_examples(config, path, Format.JSONL, lambda _: None)


def test_a_fitted_polynomial_is_refused(config: CaptureConfig, tmp_path: Path) -> None:
    folder = exported(config, Format.DISTILLKIT, tmp_path / "kit")
    settings = folder / "compression_config.yaml"
    text = settings.read_text(encoding="utf-8").replace("exact_k: 5", "exact_k: 2")
    settings.write_text(text, encoding="utf-8")

    with pytest.raises(LogError, match="polynomial"):
        import_examples(config_in(tmp_path / "b"), folder, Format.DISTILLKIT, lambda _: None)


@given(
    ids=st.lists(st.lists(st.integers(0, 2**18 - 1), min_size=3, max_size=3), min_size=1),
)
def test_packed_ids_come_back(ids: list[list[int]]) -> None:
    rows = packed(ids, 18)

    assert rows.shape == (len(ids), 7)
    assert unpacked(rows.tolist(), 18, 3).tolist() == ids
