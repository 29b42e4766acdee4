"""The door between quantizer and gateway: publish a bundle, and check one before serving it.

Loads no model library: the gateway imports this module.
"""

from pathlib import Path

from quant.errors import BundleError
from trainer.errors import ManifestError
from trainer.manifest import Lineage, Manifest, verify_folder, write_manifest

__all__ = ["BundleError", "Lineage", "publish", "verify_bundle"]


def publish(
    draft: Path, out: Path, *, lineage: Lineage, parameters: int, quality: dict[str, float]
) -> Manifest:
    """Turn a finished model folder into a bundle, in one rename.

    Args:
        draft: Folder with the model, on the file system of ``out``; gone afterwards.
        out: Folder of the bundle; must not exist.
        lineage: What the model was made from.
        parameters: Number of weights, embeddings included.
        quality: Measured figures by name.

    Raises:
        BundleError: If ``out`` exists, or the draft holds what no bundle may hold.
    """
    if out.exists():
        raise BundleError(f"{out}: exists already; choose another --out or remove it")
    try:
        manifest = write_manifest(
            draft, kind="bundle", lineage=lineage, parameters=parameters, quality=quality
        )
    except ManifestError as error:
        raise BundleError(str(error)) from error
    draft.rename(out)
    return manifest


def verify_bundle(folder: Path, *, tokenizer_hash: str | None) -> Manifest:
    """Check that a folder is an intact bundle for vLLM that reads text as its route does.

    Args:
        folder: The bundle.
        tokenizer_hash: Of the model the route serves now; None if any tokenizer will do.

    Raises:
        BundleError: If it is no bundle, is not what its manifest says, may run code, is for
            llama.cpp, or has another tokenizer.
    """
    try:
        manifest = verify_folder(folder)
    except ManifestError as error:
        raise BundleError(str(error)) from error
    if manifest.kind != "bundle":
        raise BundleError(
            f"{folder}: a {manifest.kind}, expected a bundle; make one with `retort quantize`"
        )
    kinds = {Path(name).suffix for name in manifest.files}
    if ".gguf" in kinds and ".safetensors" not in kinds:
        raise BundleError(
            f"{folder}: holds GGUF, which vLLM does not read; serve it with llama.cpp behind a "
            "route's `url` (docs/quantize.md), or make a bundle of another scheme"
        )
    if tokenizer_hash is not None and manifest.tokenizer_hash != tokenizer_hash:
        raise BundleError(
            f"{folder}: tokenizer {manifest.tokenizer_hash}, the route's is {tokenizer_hash}; "
            "use a bundle distilled from the model that the route serves"
        )
    return manifest
