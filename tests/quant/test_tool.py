"""llm-compressor's own environment; the tool itself runs in `make bench-quant`, minutes of it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from quant import tool
from quant.agreement import own_logprobs
from quant.calibration import Sample
from quant.config import QuantConfig
from quant.errors import ToolError
from quant.schemes import find_scheme
from quant.target import Target
from tests.support.tiny_model import make_tiny_model

TARGETS: tuple[Target, ...] = ("hopper", "blackwell")  # weights only, and inputs too
SAMPLE = Sample((np.arange(8, dtype=np.int64),), (4,))


def an_environment(tools: Path, program: str) -> None:
    """An interpreter that runs a program of ours whatever it is asked to run."""
    folder = tools / tool.REQUIREMENTS[0].replace("==", "-")
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\n{program}\n")
    python.chmod(0o755)
    (folder / ".complete").touch()


def test_what_the_tool_writes_becomes_a_bundles_folder(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    program = """\
import json, pathlib, shutil, sys, numpy
home = pathlib.Path(sys.argv[2])
job = json.loads((home / "job.json").read_text())
assert numpy.load(home / "sequences.npz")["arr_0"].tolist() == list(range(8))
assert job["weights_bytes"] == (pathlib.Path(job["model"]) / "model.safetensors").stat().st_size
out = pathlib.Path(job["out"])
shutil.copytree(job["model"], out)
config = json.loads((out / "config.json").read_text())
config["quantization_config"] = {"method": job["method"]}
config["left_by_the_tool"] = True
(out / "config.json").write_text(json.dumps(config))
(out / "recipe.yaml").write_text("")
"""
    an_environment(tmp_path / "tools", program)
    draft = tmp_path / "draft"
    draft.mkdir()
    config = QuantConfig(tools=tmp_path / "tools")

    size = tool.compress(model, draft, find_scheme("int4-awq", "avx512"), SAMPLE, config)

    written = {path.name for path in draft.iterdir()}
    assert written == {path.name for path in model.iterdir()}
    text = (draft / "config.json").read_text()
    assert '"method": "awq"' in text
    assert "left_by_the_tool" not in text
    assert (draft / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert size == 0  # nothing of it has a scale
    assert not list(tmp_path.glob("tool.*"))


def test_a_tool_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    an_environment(tmp_path / "tools", "raise SystemExit('no such layer')")
    draft = tmp_path / "draft"
    draft.mkdir()
    config = QuantConfig(tools=tmp_path / "tools")
    scheme = find_scheme("int4-awq", "avx512")

    with pytest.raises(ToolError, match=r"tool_job\.py .* ended with 1; .*\n.*no such layer"):
        tool.compress(make_tiny_model(tmp_path / "model"), draft, scheme, SAMPLE, config)

    assert not list(draft.iterdir())
    assert not list(tmp_path.glob("tool.*"))


def test_an_environment_that_cannot_be_made_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "REQUIREMENTS", ("no-such-package-of-ours==1.0",))
    monkeypatch.setenv("UV_OFFLINE", "1")

    for _ in range(2):  # the second try begins anew
        with pytest.raises(ToolError, match="no-such-package-of-ours"):
            tool.ensure_environment(tmp_path)

    assert not list(tmp_path.glob("*/.complete"))


def test_the_job_needs_nothing_of_ours() -> None:
    code = f"import ast; print(ast.dump(ast.parse(open({str(tool.JOB)!r}).read())))"
    tree = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not any(f"'{name}" in tree.stdout for name in ("capture.", "trainer.", "quant."))


def in_four_bit_floats(home: Path) -> Path:
    """A bfloat16 model as the tool writes it in NVFP4, weights and inputs."""
    # Imported here because it warns.
    from compressed_tensors.compressors import ModelCompressor  # noqa: PLC0415
    from compressed_tensors.quantization import (  # noqa: PLC0415
        QuantizationConfig,
        apply_quantization_config,
        preset_name_to_scheme,
    )

    plain = make_tiny_model(home / "plain", tied=False)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16)
    group = preset_name_to_scheme("NVFP4", ["Linear"])
    apply_quantization_config(
        model, QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"])
    )
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "quantization_scheme"):
                module.weight_global_scale.fill_(1.0)
                module.input_global_scale.fill_(1.0)
                largest = module.weight.unflatten(1, (-1, 16)).abs().amax(-1)
                module.weight_scale.copy_(largest / 6)  # the largest of these floats
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(home / "made")
    compressor.update_config(home / "made")
    return home / "made"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, at an import
def test_a_model_is_measured_as_the_targets_kernel_computes_it(tmp_path: Path) -> None:
    scheme = find_scheme("nvfp4", "hopper")
    folder, ids = in_four_bit_floats(tmp_path), np.arange(5, 25)

    weights_only, both = (
        tool.open_made(folder, rounds_inputs=scheme.rounds_inputs(target)) for target in TARGETS
    )

    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    unpacked = weights_only.state_dict()
    dense.load_state_dict({name: unpacked[name] for name in dense.state_dict()})
    assert np.abs(own_logprobs(weights_only, ids) - own_logprobs(dense, ids)).max() < 1e-4
    assert np.abs(own_logprobs(both, ids) - own_logprobs(dense, ids)).mean() > 0.1
