import subprocess
import sys
from pathlib import Path

import pytest

from capture.revision import tokenizer_hash
from quant.bundle import BundleError, publish, verify_bundle
from trainer.manifest import Lineage, write_manifest


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    folder = tmp_path / "draft"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text('{"vocab": ["a"]}')
    return folder


def publish_to(draft: Path, out: Path) -> None:
    lineage = Lineage(scheme="int8", parent_revision="abc")
    publish(draft, out, lineage=lineage, parameters=3, quality={"engine_checked": 1.0})


def test_a_published_bundle_verifies_under_its_own_tokenizer(draft: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    publish_to(draft, out)

    manifest = verify_bundle(out, tokenizer_hash=tokenizer_hash(out))

    assert (manifest.kind, manifest.lineage.scheme) == ("bundle", "int8")
    assert verify_bundle(out, tokenizer_hash=None) == manifest
    assert not draft.exists()


def test_another_tokenizer_is_refused(draft: Path, tmp_path: Path) -> None:
    publish_to(draft, tmp_path / "bundle")

    with pytest.raises(BundleError, match="the route's is 0123456789abcdef"):
        verify_bundle(tmp_path / "bundle", tokenizer_hash="0123456789abcdef")


def test_a_changed_file_is_refused(draft: Path, tmp_path: Path) -> None:
    publish_to(draft, tmp_path / "bundle")
    (tmp_path / "bundle" / "model.safetensors").write_bytes(b"Weights")

    with pytest.raises(BundleError, match=r"model\.safetensors: 7 bytes with SHA-256"):
        verify_bundle(tmp_path / "bundle", tokenizer_hash=None)


def test_a_checkpoint_is_no_bundle(draft: Path) -> None:
    write_manifest(draft, kind="checkpoint", lineage=Lineage(), parameters=3, quality={})

    with pytest.raises(BundleError, match="a checkpoint, expected a bundle"):
        verify_bundle(draft, tokenizer_hash=None)


def test_nothing_is_published_over_an_existing_folder(draft: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()

    with pytest.raises(BundleError, match="exists already"):
        publish_to(draft, tmp_path / "bundle")

    assert draft.exists()


def test_code_is_not_published(draft: Path, tmp_path: Path) -> None:
    (draft / "model.py").write_text("")

    with pytest.raises(BundleError, match="holds code"):
        publish_to(draft, tmp_path / "bundle")

    assert not (tmp_path / "bundle").exists()


def test_the_door_loads_no_model_library() -> None:
    code = "import quant.bundle, sys; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert not {"torch", "transformers", "numpy"} & set(loaded.stdout.split())
