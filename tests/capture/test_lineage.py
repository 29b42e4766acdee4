import json
from pathlib import Path

import pyarrow as pa

from capture.erasure import erase
from capture.lineage import find_origins
from capture.log import Log, Snapshot
from capture.revision import model_revision
from capture.selection import Selection
from tests.support.log_folders import filled
from tests.support.log_rows import exchange_row, logit_row

IDS = pa.array(["a"])


def write_model(
    folder: Path,
    *snapshots: Snapshot,
    kind: str = "checkpoint",
    parent: str | None = None,
    made: str = "2026-11-25T00:00:00Z",
) -> str:
    """A model folder made from one snapshot, calibrated on another; returns its path."""
    dumped = [snapshot.model_dump(mode="json") for snapshot in snapshots]
    lineage = {
        "snapshot": dumped[0] if dumped else None,
        "recipe": {"quantization": {"snapshot": dumped[1] if dumped[1:] else None}},
        "parent_revision": parent,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": folder.name}), encoding="utf-8")
    document = {"format_version": 1, "kind": kind, "created_at": made, "lineage": lineage}
    (folder / "retort.json").write_text(json.dumps(document), encoding="utf-8")
    return str(folder)


def two_rows(folder: Path) -> Log:
    rows = [logit_row("a"), logit_row("b")]
    return Log(filled(folder, [exchange_row("a"), exchange_row("b")], rows).log)


def test_models_of_snapshots_that_hold_the_rows_are_found(tmp_path: Path) -> None:
    log = two_rows(tmp_path)
    every, other = log.snapshot(), log.snapshot("exchange_id = 'b'")
    student = write_model(tmp_path / "runs" / "student" / "checkpoint", every)
    bundle = write_model(tmp_path / "bundles" / "int8", other, every, kind="bundle")
    write_model(tmp_path / "runs" / "unconcerned", other)

    found = find_origins(log.folder, IDS, [tmp_path / "runs", tmp_path / "bundles"])

    assert [(made.path, made.kind, made.num_rows) for made in found.models] == [
        (bundle, "bundle", 1),
        (student, "checkpoint", 1),
    ]
    assert found.num_models == 3
    assert [snapshot["digest"] for snapshot in found.snapshots] == [every.digest]


def test_what_was_made_from_such_a_model_is_found_too(tmp_path: Path) -> None:
    log = two_rows(tmp_path)
    runs = tmp_path / "runs"
    first = write_model(runs / "z", log.snapshot())
    second = write_model(runs / "y", parent=model_revision(runs / "z"))
    third = write_model(runs / "x", kind="bundle", parent=model_revision(runs / "y"))
    write_model(runs / "w", parent="another")

    found = find_origins(log.folder, IDS, [runs])

    assert [(made.path, made.parent) for made in found.models] == [
        (first, None),
        (second, first),
        (third, second),
    ]


def test_a_snapshot_that_cannot_be_read_any_more_may_have_held_them(tmp_path: Path) -> None:
    rows = [logit_row(name) for name in "abc"]
    config = filled(tmp_path, [exchange_row(name) for name in "abc"], rows)
    log = Log(config.log)
    every, other = log.snapshot(), log.snapshot("exchange_id = 'b'")
    maybe = write_model(tmp_path / "runs" / "maybe", every)
    write_model(tmp_path / "runs" / "earlier", every, made="2026-11-23T00:00:00Z")
    write_model(tmp_path / "runs" / "unconcerned", other)
    erase(config, Selection(exchanges=["c"]))

    done = erase(config, Selection(exchanges=["a"]), [tmp_path / "runs"])

    assert [(made.path, made.num_rows) for made in done.origins.models] == [(maybe, None)]


def test_a_log_that_was_moved_is_known_by_its_rows(tmp_path: Path) -> None:
    log = two_rows(tmp_path / "there")
    moved = write_model(tmp_path / "runs" / "student", log.snapshot())
    stranger = Log(filled(tmp_path / "other", [exchange_row("a")], [logit_row("a")]).log)
    write_model(tmp_path / "runs" / "stranger", stranger.snapshot())
    (tmp_path / "there").rename(tmp_path / "here")

    found = find_origins(tmp_path / "here" / "log", IDS, [tmp_path / "runs"])

    assert [made.path for made in found.models] == [moved]


def test_unreadable_manifests_are_passed_over(tmp_path: Path) -> None:
    log = two_rows(tmp_path)
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"kind": "bundle"}')):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "retort.json").write_text(text, encoding="utf-8")

    assert find_origins(log.folder, IDS, [tmp_path / "runs"]).num_models == 0


def test_a_filter_whose_file_is_gone_may_have_selected_the_rows(tmp_path: Path) -> None:
    log, chosen = two_rows(tmp_path), tmp_path / "chosen.csv"
    chosen.write_text("exchange_id\na\n")
    where = f"exchange_id in (select exchange_id from read_csv('{chosen}'))"  # noqa: S608
    student = write_model(tmp_path / "runs" / "student", log.snapshot(where))

    (made,) = find_origins(log.folder, IDS, [tmp_path / "runs"]).models
    chosen.unlink()
    (unknown,) = find_origins(log.folder, IDS, [tmp_path / "runs"]).models

    assert (made.path, made.num_rows) == (student, 1)
    assert (unknown.path, unknown.num_rows) == (student, None)
