"""Every scheme that this machine serves, made of a tiny model and served by a real vLLM."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from capture.host import SMALL_ENGINE_ENV
from quant.agreement import MOST_NATS, own_logprobs
from quant.calibration import Tokens
from quant.config import QuantConfig
from quant.heldout import Figures
from quant.quantization import Quantization, Wish
from quant.schemes import COMPRESSOR, served
from quant.screen import Screen
from quant.target import this_target
from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.checkpoint import save_checkpoint
from trainer.fake import FakeFormat, fake_quantize, grid_of
from trainer.manifest import Lineage
from trainer.precision import round_weights
from trainer.student import open_student, open_teacher

if TYPE_CHECKING:
    from pydantic import JsonValue

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]
SCHEMES = [s.name for s in served(this_target()) if s.library != COMPRESSOR]
CONFIG = QuantConfig(calibration_rows=16, max_length=64, floor=0.0)


@dataclass
class Made:
    """Bundles, and what their arithmetic says of some prompts."""

    folders: dict[str, Path] = field(default_factory=dict)
    ours: dict[str, list[np.ndarray]] = field(default_factory=dict)
    students: dict[str, list[np.ndarray]] = field(default_factory=dict)
    engines: dict[str, list[list[float]]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("schemes")
    plain = make_tiny_model(home / "plain", hidden_size=128, tied=False)
    table = answer(plain, 24, tokens=4)
    prompts: list[list[int]] = []
    students: dict[str, PreTrainedModel] = {}
    made = Made(folders={"none": plain})
    for scheme in served(this_target()):
        if scheme.name not in SCHEMES:
            continue
        model = plain
        if scheme.method == "qat":
            format_: FakeFormat = "int8" if scheme.weight_bits == 8 else "int4"
            model, students[scheme.name] = train_for(format_, plain, home)

        def keep(
            draft: Path, held: PreTrainedModel, rows: Sequence[Tokens], name: str = scheme.name
        ) -> Figures:
            made.folders[name] = Path(shutil.copytree(draft, home / name))
            prompts[:] = [row.tolist() for row in rows[-6:]]
            made.ours[name] = [own_logprobs(held.float(), row) for row in rows[-6:]]
            return {}

        job = Quantization.prepare(model, Wish(scheme, this_target(), 0.4), CONFIG, table, {})
        with Screen.opened() as screen:
            job.run(home / f"bundle-{scheme.name}", keep, screen)
    held = open_teacher(plain, torch.device("cpu"))
    made.ours["none"] = [own_logprobs(held, np.array(ids)) for ids in prompts]
    for name, student in students.items():
        made.students[name] = [own_logprobs(student, np.array(ids)) for ids in prompts]
    (home / "prompts.json").write_text(json.dumps(prompts))
    made.engines = ask_vllm(home / "prompts.json", made.folders)
    return made


def ask_vllm(prompts: Path, folders: dict[str, Path]) -> dict[str, list[list[float]]]:
    words = ["-m", "tests.support.engine_logprobs", "float32", prompts, *folders.values()]
    command = [sys.executable, *map(str, words)]
    # In float32, to compare exactly; vLLM's own product for 4 bits has only bfloat16.
    env = {**os.environ, **SMALL_ENGINE_ENV, "VLLM_DISABLED_KERNELS": "CPUWNA16LinearKernel"}
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr[-3000:]
    found = json.loads(told.stdout.splitlines()[-1])
    return {name: found[str(folder)] for name, folder in folders.items()}


def train_for(name: FakeFormat, plain: Path, home: Path) -> tuple[Path, PreTrainedModel]:
    """A checkpoint of a run that trained for a format, and the student as the run ends."""
    student = open_student(plain, plain, torch.device("cpu"))
    fake_quantize(student, name)
    round_weights(student)  # as the run does before it measures
    grid = asdict(grid_of(student, name))
    recipe: dict[str, JsonValue] = {
        "fake_quantize": name,
        "fake_quantize_grid": grid,
        "heldout_fraction": 0.05,
    }
    folder = home / f"trained-{name}"
    save_checkpoint(student, plain, folder, lineage=Lineage(recipe=recipe), quality={})
    return folder, student


@pytest.mark.parametrize("scheme", SCHEMES)
def test_vllm_computes_with_a_bundle_what_was_measured(made: Made, scheme: str) -> None:
    ours, plain = np.concatenate(made.ours[scheme]), np.concatenate(made.ours["none"])
    engines = np.concatenate([np.array(row) for row in made.engines[scheme]])

    # An input halfway between two steps may fall to either side, and moves all that follows.
    assert np.median(np.abs(engines - ours)) < 1e-4
    assert np.abs(engines - ours).mean() < MOST_NATS
    assert np.median(np.abs(engines - plain)) > 1e-3  # it is not the model as it was


def test_a_bundle_of_4_bits_takes_three_tenths_of_its_layers(made: Made) -> None:
    plain, packed = (made.folders[name] / "model.safetensors" for name in ("none", "int4-rtn"))
    # 32 bits each here, and embeddings and head as they were.
    assert packed.stat().st_size < 0.6 * plain.stat().st_size


@pytest.mark.parametrize("scheme", ["int8-qat", "int4-qat"])
def test_vllm_computes_what_a_student_did_under_training(made: Made, scheme: str) -> None:
    trained = np.concatenate(made.students[scheme])
    engines = np.concatenate([np.array(row) for row in made.engines[scheme]])

    assert np.median(np.abs(engines - trained)) < 1e-4
