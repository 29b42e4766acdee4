"""llm-compressor, which does not fit beside vLLM: in an environment of its own, as a process.

A folder with the job goes in, a folder with the model comes out; nothing else is shared.
"""

import fcntl
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from capture.process import last_lines
from quant.calibration import Sample
from quant.config import QuantConfig
from quant.errors import ToolError
from quant.memory import available_bytes
from quant.packed import copy_rest
from quant.schemes import Scheme
from quant.source import weights_size
from trainer.grid import GROUP_SIZES

REQUIREMENTS = ("llmcompressor==0.14.0.1", "torch==2.13.0")
JOB = Path(__file__).with_name("tool_job.py")
PACKED = (".weight", ".weight_packed", ".weight_scale", ".weight_global_scale")


def compress(model: Path, draft: Path, scheme: Scheme, sample: Sample, config: QuantConfig) -> int:
    """Let the tool quantize a model, and make a bundle's folder of what it writes.

    Args:
        model: Folder of the unquantized model.
        draft: Empty folder to fill.
        scheme: One that the tool makes.
        sample: Rows of the log to calibrate on.
        config: Where the tool's environment is.

    Returns:
        Bytes that the quantized layers take.

    Raises:
        ToolError: If the environment cannot be made, or the tool fails; with its last lines.
    """
    python = ensure_environment(config.tools.expanduser())
    with TemporaryDirectory(dir=draft.parent, prefix="tool.") as scratch:
        home = Path(scratch)
        made = home / "model"
        job = {
            "model": str(model.resolve()),
            "out": str(made.resolve()),
            "method": scheme.method,
            "group_size": config.group_size,
            "group_sizes": GROUP_SIZES,
            "max_length": config.max_length,
            "weights_bytes": weights_size(model),
            "memory_bytes": available_bytes() // 2,  # of weights; the rest is for a layer's work
            "offloaded": str(home.resolve() / "offloaded"),
        }
        (home / "job.json").write_text(json.dumps(job), encoding="utf-8")
        np.savez(home / "sequences.npz", *sample.sequences)
        _run([str(python), str(JOB), str(home)], home / "tool.log", config.threads)
        shards = [path for path in sorted(made.iterdir()) if path.name.startswith("model")]
        described = json.loads((made / "config.json").read_text(encoding="utf-8"))
        copy_rest(model, draft, described["quantization_config"])
        for path in shards:
            path.rename(draft / path.name)
            (draft / path.name).chmod(0o644)
    return sum(_quantized_bytes(path) for path in draft.glob("*.safetensors"))


def open_made(folder: Path, *, rounds_inputs: bool) -> PreTrainedModel:
    """Load what the tool wrote, in float32, to compute what an engine is to compute.

    Args:
        folder: A model that the tool quantized.
        rounds_inputs: Whether the engine rounds what the layers take, if the scheme says so.
    """
    dense = CompressedTensorsConfig(dequantize=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it overrides what the folder says
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=dense, local_files_only=True
        )
    for module in model.modules():
        module.quantization_enabled = rounds_inputs  # compressed-tensors asks this of each layer
    return model.float()  # weights of 4-bit floats are unpacked in the dtype they were made from


def ensure_environment(tools: Path) -> Path:
    """Return the interpreter of the tool's environment, which is made on first use.

    Raises:
        ToolError: If it cannot be made.
    """
    name = REQUIREMENTS[0].replace("==", "-")
    folder = tools / name
    python = folder / "bin" / "python"
    tools.mkdir(parents=True, exist_ok=True)
    with _alone(tools / f"{name}.lock"):
        if not (folder / ".complete").exists():
            log = tools / f"{name}.log"
            uv = Path(sys.executable).with_name("uv")
            if not uv.exists():
                raise ToolError(
                    f"{uv}: not there, and it makes the environment of {REQUIREMENTS[0]}: "
                    "run `pip install uv` beside retort"
                )
            _run([str(uv), "venv", "--clear", "--python", sys.executable, str(folder)], log, 1)
            links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS")
            backend = () if links else ("--torch-backend", "cpu")
            install = ("pip", "install", "--python", str(python), *backend, *REQUIREMENTS)
            _run([str(uv), *install], log, 1)
            (folder / ".complete").touch()
    return python


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Of processes that share a file, let one in at a time."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], log: Path, threads: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment.setdefault("UV_FIND_LINKS", environment.get("PIP_FIND_LINKS", ""))
    environment.pop("PYTHONPATH", None)  # the tool's packages are its own
    with log.open("ab") as file:
        ended = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
    if ended.returncode:
        raise ToolError(
            f"{Path(command[0]).name} {' '.join(command[1:3])} ended with {ended.returncode}; the "
            f"last lines of its output:\n{last_lines(log)}"
        )


def _quantized_bytes(shard: Path) -> int:
    """Of the layers of one file that have scales."""
    with safe_open(shard, "pt") as file:
        names = set(file.keys())
        layers = {n.removesuffix(".weight_scale") for n in names if n.endswith(".weight_scale")}
        stored = [f"{layer}{part}" for layer in layers for part in PACKED]
        return sum(file.get_tensor(name).nbytes for name in stored if name in names)
