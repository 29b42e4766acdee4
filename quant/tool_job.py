"""One job of llm-compressor, for its own interpreter: imports nothing of ours (``quant.tool``)."""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from compressed_tensors.offload import load_offloaded_model
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

NAMES = {"fp8": "FP8_DYNAMIC", "nvfp4": "NVFP4", "mxfp4": "MXFP4"}
DATA_FREE = ("fp8",)


def main(home: Path) -> None:
    """Quantize the model that ``job.json`` names, calibrated on ``sequences.npz``."""
    job = json.loads((home / "job.json").read_text(encoding="utf-8"))
    model = load(job)
    rows = None
    if job["method"] not in DATA_FREE:
        stored = np.load(home / "sequences.npz")
        sequences = [stored[name].tolist() for name in stored.files]
        rows = datasets.Dataset.from_list(
            [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sequences]
        )
    # Without a GPU there is no memory to pin, and asking for it ends the job.
    IntermediatesCache.pin_memory = lambda *_args, **_kwargs: None
    oneshot(
        model=model,
        recipe=recipe(job, model),
        dataset=rows,
        max_seq_length=job["max_length"],
        num_calibration_samples=len(rows) if rows is not None else 0,
    )
    model.save_pretrained(job["out"], save_compressed=True)


def load(job: dict[str, Any]) -> PreTrainedModel:
    """Open a model; layers that do not fit into the memory allowed wait on the disk for their turn.

    The tool changes weights where they are, which takes memory even where they were mapped.
    """
    options = {"dtype": "auto", "local_files_only": True}
    if job["weights_bytes"] <= job["memory_bytes"]:
        return AutoModelForCausalLM.from_pretrained(job["model"], **options)
    options |= {"device_map": "auto_offload", "max_memory": {"cpu": job["memory_bytes"]}}
    with load_offloaded_model():
        return AutoModelForCausalLM.from_pretrained(
            job["model"], offload_folder=job["offloaded"], **options
        )


def recipe(job: dict[str, Any], model: PreTrainedModel) -> list[Any]:
    """Return the modifiers of a method; the output head keeps its precision."""
    if job["method"] != "awq":
        name = NAMES[job["method"]]
        return [QuantizationModifier(targets="Linear", scheme=name, ignore=["lm_head"])]
    head = model.get_output_embeddings()
    widths = [m.in_features for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    sizes = [job["group_size"]] if job["group_size"] else job["group_sizes"]
    group = next((size for size in sizes if all(width % size == 0 for width in widths)), None)
    if group is None:
        raise SystemExit(f"groups of {sizes} do not divide the widths {sorted(set(widths))}")
    weights = {"num_bits": 4, "type": "int", "symmetric": True}
    weights |= {"strategy": "group", "group_size": group}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=["lm_head"])]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
