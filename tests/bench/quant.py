"""What each way to compress costs and keeps, on the models and the log of ``retort demo``.

``make bench-quant`` quantizes teacher, student and a student trained for 4 bits by every scheme
that this machine serves, tries each in vLLM beside the model as it is, and writes
``bench/quant.json`` and ``bench/quant.html``. Besides: what calibration on the log is worth
beside plain text, a mixture of formats beside arbitrary ones of its size, and how fast a wide
model decodes in INT8.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from capture.engine import Engine
from capture.log import Log
from quant.calibration import Tokens
from quant.config import QuantConfig
from quant.heldout import Figures
from quant.matrix import measure_models
from quant.matrix_report import write_page
from quant.quantization import Quantization, Wish
from quant.schemes import find_scheme
from quant.screen import Screen
from quant.serving import trial_spec
from quant.speed import compare_speeds
from quant.target import this_target
from tests.bench.mixtures import compare_mixtures
from trainer.checkpoint import COMPANIONS
from trainer.dataset import COLUMNS
from trainer.manifest import read_manifest

CONFIG = QuantConfig(calibration_rows=128)
QAT_STEPS = 300
WIDE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 3}
console = Console(stderr=True)


def main() -> int:
    """Make, serve, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("demo"), help="of `retort demo`")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args()
    home, began = options.home.resolve(), time.monotonic()
    if not (home / "runs" / "student" / "checkpoint").is_dir():
        console.print(f"{home}: no student there; run `make demo` first, or give --home")
        return 2
    work = options.out.resolve() / "quant"
    shutil.rmtree(work, ignore_errors=True)
    teacher = Path(shutil.copytree(home / "cache" / "teacher", work / "teacher"))
    student = Path(shutil.copytree(home / "runs" / "student" / "checkpoint", work / "student"))
    trained = {name: train_on(home, work, name) for name in ("int4", None)}
    log = Log(home / "log")
    with Screen.opened() as screen:
        models = [teacher, student, trained["int4"]]
        content = measure_models(models, CONFIG, log, work / "bundles", None, screen)
        content["qat"] = recovered(content["rows"], trained[None], log, screen)
        content["calibration"] = compare_calibration([teacher, student], log, work, screen)
        content["mixtures"] = {
            model.name: compare_mixtures(model, log, CONFIG, 0.35, screen)
            for model in (teacher, student)
        }
        content["wide"] = measure_wide(teacher, log, work, screen)
    content["seconds"] = time.monotonic() - began
    path = options.out / "quant.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_page(content, options.out / "quant.html")
    show(content)
    console.print(path)
    return 0


def train_on(home: Path, work: Path, fake_quantize: str | None) -> Path:
    """Train the student for a few steps more, computing with rounded weights or not."""
    name = f"student-{fake_quantize}-trained" if fake_quantize else "student-more"
    where = read_manifest(work / "student").lineage.recipe["where"]
    settings: dict[str, Any] = {
        "log": str(home / "log"),
        "where": where,
        "teacher": str(work / "teacher"),
        "student": str(work / "student"),
        "out": str(work / f"run-{name}"),
        "steps": QAT_STEPS,
        "learning_rate": 3e-5,  # 1e-4 unlearns: the student is at its best already
        "baseline": False,
    }
    if fake_quantize:
        settings["fake_quantize"] = fake_quantize
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    path = work / f"{name}.toml"
    path.write_text("[trainer]\n" + "\n".join(lines) + "\n")
    subprocess.run([sys.executable, "-m", "gateway", "distill", "-c", str(path)], check=True)
    return Path(shutil.move(work / f"run-{name}" / "checkpoint", work / name))


def figures_of(model: Path, scheme: str, config: QuantConfig, log: Log, screen: Screen) -> Figures:
    """What a bundle keeps, without serving it."""
    snapshot = log.snapshot(config.where)
    table = log.read(snapshot, list(COLUMNS))
    wish = Wish(find_scheme(scheme, this_target()), this_target(), is_forced=True)
    job = Quantization.prepare(model, wish, config, table, {})
    out = model.with_name(f"{model.name}-{scheme}-only")
    quality = job.run(out, None, screen).quality
    shutil.rmtree(out)
    return quality


def recovered(
    rows: Sequence[dict[str, Any]], more: Path, log: Log, screen: Screen
) -> dict[str, float]:
    """Of the KL to the teacher that 4 bits cost a student, how much training for them saves.

    Beside it the same student trained on for as long as it is, and rounded then.
    """
    served = [row for row in rows if row["served"]]
    kl: dict[tuple[str, str], float] = {
        (row["folder"], row["scheme"]): row["kl_to_teacher_nats"] for row in served
    }
    plain, rounded = kl["student", "none"], kl["student", "int4-rtn"]
    trained = kl["student-int4-trained", "int4-qat"]
    found = figures_of(more, "int4-rtn", CONFIG, log, screen)
    on, on_rounded = found["unquantized_kl_to_teacher_nats"], found["kl_to_teacher_nats"]
    return {
        "kl_student": plain,
        "kl_int4_rtn": rounded,
        "kl_int4_gptq": kl["student", "int4-gptq"],
        "kl_int4_qat": trained,
        "kl_trained_on": on,
        "kl_trained_on_int4_rtn": on_rounded,
        "recovered": (rounded - trained) / (rounded - plain),
        "recovered_beside_training_on": (on_rounded - trained) / (on_rounded - on),
    }


def compare_calibration(
    models: Sequence[Path], log: Log, work: Path, screen: Screen
) -> dict[str, dict[str, float]]:
    """KL to the parent of int4-gptq, calibrated on the log and on as many rows of plain text."""
    text = work / "plain.txt"
    pages = [*Path("docs").glob("*.md"), Path("README.md"), Path("CONTRIBUTING.md")]
    text.write_text("\n".join(page.read_text(encoding="utf-8") for page in sorted(pages)))
    found: dict[str, dict[str, float]] = {}
    for model in models:
        for name, path in (("log", None), ("text", text)):
            config = CONFIG.model_copy(update={"calibration_text": path, "max_length": 128})
            figures = figures_of(model, "int4-gptq", config, log, screen)
            found.setdefault(model.name, {})[name] = figures["kl_to_parent_nats"]
    return found


def measure_wide(teacher: Path, log: Log, work: Path, screen: Screen) -> dict[str, float]:
    """Decode and prefill of a wide model of random weights in INT8, over the same as it is."""
    wide = work / "wide"
    config = json.loads((teacher / "config.json").read_text())
    torch.manual_seed(0)
    kept = {"vocab_size": config["vocab_size"], "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(**WIDE, **kept, num_attention_heads=16)).bfloat16()
    model.save_pretrained(wide)
    for name in COMPANIONS:
        if (teacher / name).is_file():
            shutil.copyfile(teacher / name, wide / name)
    few = CONFIG.model_copy(update={"calibration_rows": 8})
    wish = Wish(find_scheme("int8", this_target()), this_target())
    table = log.read(log.snapshot(few.where), list(COLUMNS))
    job = Quantization.prepare(wide, wish, few, table, {})
    cells: dict[str, float] = {}

    def trial(draft: Path, _made: PreTrainedModel, _rows: Sequence[Tokens]) -> Figures:
        specs = [trial_spec(each, few, work / f"{each.name}.log") for each in (wide, draft)]
        with Engine.start(specs[0]) as plain, Engine.start(specs[1]) as int8:
            plain.wait_ready()
            int8.wait_ready()
            speeds = compare_speeds([plain, int8], config["vocab_size"])
        cells["decode_ratio"] = speeds[1].decode_over(speeds[0])
        cells["prefill_ratio"] = speeds[1].prefill_over(speeds[0])
        return {}

    job.run(work / "wide-int8", trial, screen)
    return cells


def show(content: dict[str, Any]) -> None:
    """Print the table."""
    titles = ("model", "scheme", "layers", "decode", "KL to parent", "right", "kept", "rare", "s")
    table = Table(*titles)
    for row in content["rows"]:
        if not row["served"]:
            table.add_row(row["folder"], row["scheme"], *("-",) * 6, f"{row['seconds']:.0f}")
            continue
        table.add_row(
            row["folder"],
            row["scheme"],
            f"{row['size_ratio_layers']:.2f}",
            f"{row['tokens_per_second_ratio']:.2f}",
            f"{row['kl_to_parent_nats']:.2e}",
            f"{row['exact_match']:.1%}",
            f"{row['quality_ratio'] or float('nan'):.1%}",
            f"{row['quality_ratio_rare'] or float('nan'):.1%}",
            f"{row['seconds']:.0f}",
        )
    console.print(table)
    for name in ("qat", "calibration", "mixtures", "wide"):
        console.print(name, content[name])
    console.print(content["advice"])


if __name__ == "__main__":
    sys.exit(main())
