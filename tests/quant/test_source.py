import json
import shutil
from pathlib import Path

import pytest

from quant.errors import CompressionError
from quant.source import files_beside, shards_of, weights_size
from trainer.errors import ManifestError

INDEX = "model.safetensors.index.json"


def a_folder(folder: Path, *names: str, index: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("{}")
    if index is not None:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def test_weights_are_those_that_the_index_names(tmp_path: Path) -> None:
    whole = a_folder(tmp_path / "whole", "model.safetensors", "consolidated.safetensors")
    parts = {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    split = a_folder(
        tmp_path / "split", "a.safetensors", "b.safetensors", "c.safetensors", index=parts
    )

    assert shards_of(whole) == ["model.safetensors"]
    assert shards_of(split) == ["a.safetensors", "b.safetensors"]


def test_the_size_of_a_model_is_that_of_the_weights_that_are_read(tmp_path: Path) -> None:
    whole = a_folder(tmp_path / "whole", "model.safetensors", "consolidated.safetensors")
    loose = a_folder(tmp_path / "loose", "a.safetensors", "b.safetensors")
    pickled = a_folder(tmp_path / "pickled", "pytorch_model.bin")

    assert [weights_size(folder) for folder in (whole, loose, pickled)] == [2, 4, 0]


def test_a_folder_without_all_of_its_weights_is_refused(tmp_path: Path) -> None:
    pickled = a_folder(tmp_path / "pickled", "config.json", "pytorch_model.bin")
    torn = a_folder(tmp_path / "torn", "a.safetensors", index={"x": "b.safetensors"})
    (tmp_path / "secret.safetensors").touch()
    away = a_folder(tmp_path / "away", index={"x": "../secret.safetensors"})
    twice = a_folder(tmp_path / "twice", "model.safetensors", "a.safetensors")
    (twice / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    odd = a_folder(tmp_path / "odd")
    (odd / INDEX).write_text("[]")

    for folder, words in (
        (pickled, r"pickled: no model\.safetensors and no .* convert it to safetensors"),
        (torn, r"index\.json: names b\.safetensors, which is not there"),
        (away, r"index\.json: names \.\./secret\.safetensors, which is not there"),
        (twice, r"twice: holds model\.safetensors and an index that does not name it"),
        (odd, r"index\.json: no weight_map"),
    ):
        with pytest.raises(CompressionError, match=words):
            shards_of(folder)


def test_beside_the_weights_nothing_that_holds_weights_is_taken(tmp_path: Path) -> None:
    names = ("model.safetensors", "model.q4.gguf", "pytorch_model.bin", "tf_model.h5", INDEX)
    folder = a_folder(tmp_path / "model", "config.json", "tokenizer.json", "retort.json", *names)
    a_folder(folder / "original", "consolidated.00.pth", "params.json")
    (folder / "pytorch_model.bin.index.json").write_text("{}")

    assert files_beside(folder) == ["original/params.json", "tokenizer.json"]


def test_of_links_only_those_of_a_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    cache, secret = tmp_path / "models--a--b", tmp_path / "secret.json"
    blobs = a_folder(cache / "blobs", "1234")
    secret.write_text("{}")
    snapshot = a_folder(cache / "snapshots" / "main", "config.json")
    (snapshot / "tokenizer.json").symlink_to(Path("..", "..", "blobs", "1234"))

    assert files_beside(snapshot) == ["tokenizer.json"]

    for target in (secret, blobs):
        (snapshot / "more.json").symlink_to(target)
        with pytest.raises(ManifestError, match=r"more\.json: a symbolic link; .*`cp -rL`"):
            files_beside(snapshot)
        (snapshot / "more.json").unlink()
    shutil.rmtree(blobs)
    with pytest.raises(ManifestError, match=r"tokenizer\.json: not a regular file"):
        files_beside(snapshot)


def test_code_is_refused(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "model", "config.json", "modeling_own.py")

    with pytest.raises(ManifestError, match=r"modeling_own\.py: holds code"):
        files_beside(folder)
    (folder / "modeling_own.py").unlink()
    (folder / "config.json").write_text('{"auto_map": {}}')
    with pytest.raises(ManifestError, match="holds auto_map"):
        files_beside(folder)
