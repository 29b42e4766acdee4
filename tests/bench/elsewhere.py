"""Bundles made on one machine and served on another: does vLLM there compute what was meant?

``python -m tests.bench.elsewhere make FOLDER --target hopper`` makes every scheme of that target of
a tiny model of random bfloat16 weights, with the log-probabilities that our arithmetic gives
the tokens of some prompts. ``... serve FOLDER``, on that target, asks vLLM and writes
``FOLDER/served.json``. The target's machine needs vLLM and this package, and no network.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel

from capture.host import SMALL_ENGINE_ENV, dtype_args
from quant.agreement import own_logprobs
from quant.calibration import Tokens
from quant.config import QuantConfig
from quant.heldout import Figures
from quant.quantization import Quantization, Wish
from quant.schemes import Scheme, served
from quant.screen import Screen
from quant.target import Target, find_target
from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model

CONFIG = QuantConfig(calibration_rows=16, max_length=64, floor=0.0)
PROMPTS = 8
PLAIN = "none"


def main() -> int:
    """Make, or serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["make", "serve"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", help="what is to serve them; default: this machine")
    options = parser.parse_args()
    if options.action == "make":
        make_all(options.folder, find_target(options.target))
    else:
        show(serve_all(options.folder))
    return 0


def make_all(folder: Path, target: Target) -> None:
    """Every scheme that needs no training of its own."""
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    plain = make_tiny_model(folder / PLAIN, hidden_size=256, tied=False)
    AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16).save_pretrained(plain)
    table = answer(plain, 24, tokens=8)
    ours: dict[str, list[list[float]]] = {}
    prompts: list[list[int]] = []

    def make(scheme: Scheme) -> None:
        def keep(draft: Path, held: PreTrainedModel, rows: Sequence[Tokens]) -> Figures:
            shutil.copytree(draft, folder / scheme.name)
            prompts[:] = [row.tolist() for row in rows[-PROMPTS:]]
            ours[scheme.name] = [own_logprobs(held, row).tolist() for row in rows[-PROMPTS:]]
            return {}

        wish = Wish(scheme, target, 0.4, is_forced=True)
        job = Quantization.prepare(plain, wish, CONFIG, table, {})
        with Screen.opened() as screen, TemporaryDirectory() as scratch:
            job.run(Path(scratch) / "bundle", keep, screen)

    for scheme in served(target):
        if scheme.method != "qat":
            make(scheme)
    held = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    ours[PLAIN] = [own_logprobs(held, np.array(ids)).tolist() for ids in prompts]
    content = {"prompts": prompts, "ours": ours}
    (folder / "expected.json").write_text(json.dumps(content), encoding="utf-8")


def serve_all(folder: Path) -> list[dict[str, Any]]:
    """Ask vLLM, each bundle in a process of its own; one it refuses does not stop the others."""
    content = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    (folder / "prompts.json").write_text(json.dumps(content["prompts"]), encoding="utf-8")
    plain = np.concatenate(content["ours"][PLAIN])
    dtype = dtype_args()[-1] if dtype_args() else "auto"
    rows = []
    for name, ours in content["ours"].items():
        words = ["-m", "tests.support.engine_logprobs", dtype, folder / "prompts.json"]
        command = [sys.executable, *map(str, words), str(folder / name)]
        env = {**os.environ, **SMALL_ENGINE_ENV}
        told = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        row: dict[str, Any] = {"scheme": name, "error": told.stderr[-3000:]}
        if told.returncode == 0:
            (theirs,) = json.loads(told.stdout.splitlines()[-1]).values()
            apart = np.abs(np.concatenate(theirs) - np.concatenate(ours))
            moved = np.abs(np.concatenate(theirs) - plain).mean()
            row = {"scheme": name, "error": "", "mean_nats": float(apart.mean())}
            row |= {"median_nats": float(np.median(apart)), "from_plain_nats": float(moved)}
        rows.append(row)
    (folder / "served.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the distances."""
    table = Table("scheme", "mean, nats", "median", "from the plain model")
    for row in rows:
        figures = [row.get(name) for name in ("mean_nats", "median_nats", "from_plain_nats")]
        told = ["-" if figure is None else f"{figure:.4f}" for figure in figures]
        table.add_row(row["scheme"], *told)
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    sys.exit(main())
