import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.errors import ManifestError
from trainer.manifest import (
    MANIFEST,
    Lineage,
    chat_template_hash,
    read_manifest,
    verify_folder,
    write_manifest,
)

Damage = Callable[[Path], object]


def write_files(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(bytes(range(64)))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ m }}"}')
    (folder / "extra").mkdir()
    (folder / "extra" / "notes.txt").write_text("kept")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_files(tmp_path / "model")
    lineage = Lineage(snapshot={"digest": "abc"}, recipe={"heldout_fraction": 0.05})
    write_manifest(
        folder, kind="checkpoint", lineage=lineage, parameters=7, quality={"kl_nats": 0.5}
    )
    return folder


def edit(folder: Path, **fields: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_folder_is_what_its_manifest_says(folder: Path) -> None:
    manifest = verify_folder(folder)

    assert manifest == read_manifest(folder)
    assert set(manifest.files) == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        "extra/notes.txt",
    }
    assert (
        manifest.size_bytes
        == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        - (folder / MANIFEST).stat().st_size
    )
    assert manifest.lineage.recipe == {"heldout_fraction": 0.05}
    assert manifest.created_at.utcoffset() is not None


def test_the_manifest_can_be_written_again(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "qwen3"}')

    write_manifest(folder, kind="bundle", lineage=Lineage(), parameters=7, quality={})

    assert verify_folder(folder).kind == "bundle"


def write_code(folder: Path) -> None:
    (folder / "modeling.PY").write_text("print()")


def write_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def ask_for_code(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": [{"auto_map": {"AutoModel": "m.M"}}]}')


def link_a_file(folder: Path) -> None:
    target = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(target)
    (folder / "model.safetensors").symlink_to(target)


def link_a_folder(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "extra").rename(outside)
    (folder / "extra").symlink_to(outside)


def change_a_byte(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[40] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def name_a_file(folder: Path, name: str) -> None:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    edit(folder, files={**files, name: files["config.json"]})


DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json: missing"),
    "added": (lambda folder: (folder / "new.txt").write_text(""), r"new\.txt: not named"),
    "changed": (change_a_byte, r"model\.safetensors: 64 bytes with SHA-256 .*, expected 64 with"),
    "code": (write_code, r"modeling\.PY: holds code"),
    "pickle": (write_pickle, r"pytorch_model\.bin: may be a pickle"),
    "auto_map": (ask_for_code, r"config\.json: holds auto_map"),
    "link": (link_a_file, r"model\.safetensors: a symbolic link"),
    "folder link": (link_a_folder, r"extra: a symbolic link"),
    "pipe": (lambda folder: os.mkfifo(folder / "pipe"), r"pipe: not a regular file"),
    "outside": (
        lambda folder: name_a_file(folder, "../other"),
        r"'\.\./other' leaves the folder",
    ),
    "absolute": (lambda folder: name_a_file(folder, "/etc/x"), "'/etc/x' leaves the folder"),
    "backslash": (lambda folder: name_a_file(folder, "..\\x"), "leaves the folder"),
    "no digest": (lambda folder: edit(folder, files={"config.json": {}}), "sha256: Field required"),
    "version": (lambda folder: edit(folder, format_version=2), "format version 2, this retort"),
    "no version": (lambda folder: (folder / MANIFEST).write_text("[]"), "format version None"),
    "unknown key": (lambda folder: edit(folder, trust=True), "trust: Extra inputs"),
    "tokenizer": (lambda folder: edit(folder, tokenizer_hash="0" * 16), "tokenizer_hash is 0000"),
    "template": (lambda folder: edit(folder, chat_template_hash="1"), "chat_template_hash is 1,"),
    "no JSON": (lambda folder: (folder / MANIFEST).write_text("{"), "not valid JSON"),
    "deep JSON": (
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        r"config\.json: not valid JSON",
    ),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), r"retort\.json: no such file"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_by_name(folder: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(folder)

    with pytest.raises(ManifestError, match=message):
        verify_folder(folder)


@pytest.mark.parametrize("damage", [write_code, write_pickle, ask_for_code, link_a_file])
def test_what_would_be_refused_is_not_written(tmp_path: Path, damage: Damage) -> None:
    folder = write_files(tmp_path / "model")
    damage(folder)

    with pytest.raises(ManifestError):
        write_manifest(folder, kind="bundle", lineage=Lineage(), parameters=1, quality={})

    assert not (folder / MANIFEST).exists()


def test_the_chat_template_counts_wherever_it_is_kept(folder: Path) -> None:
    in_settings = chat_template_hash(folder)

    (folder / "tokenizer_config.json").write_text("{}")
    without = chat_template_hash(folder)
    (folder / "chat_template.jinja").write_text("{{ m }}")
    in_file = chat_template_hash(folder)

    assert len({in_settings, without, in_file}) == 3
