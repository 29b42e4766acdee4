import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from capture.errors import ConfigError
from capture.host import largest_int8_weight
from capture.log import Log
from capture.revision import model_revision, tokenizer_hash
from quant.bundle import verify_bundle
from quant.calibration import choose_rows, heldout_mask
from quant.commands import quantize_app
from quant.compare.rows import Choice
from quant.compare.rows import choose_rows as rows_to_compare
from quant.errors import CompressionError
from quant.heldout import Figures, Measured
from tests.support.answered_rows import answer, write_log
from tests.support.model_kinds import make_model
from tests.support.tiny_model import make_tiny_model
from trainer.errors import ManifestError
from trainer.manifest import Lineage, Manifest, write_manifest

if TYPE_CHECKING:
    from pydantic import JsonValue

pytestmark = pytest.mark.slow
CONFIG = '[capture]\nlog = "log"\n[quant]\ncalibration_rows = 24\nheldout_fraction = 0.5\n'
LAYERS = 2 * 7  # of a Llama of two blocks


@dataclass(frozen=True)
class Made:
    home: Path
    model: Path
    bundle: Path
    table: pa.Table
    printed: str
    manifest: Manifest


def quantize(*words: str | Path) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        quantize_app([str(word) for word in words], prog_name="retort quantize")
    return end.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A log of a model's answers, and a bundle of the model, made by the command."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("quant")
    model, bundle = make_tiny_model(home / "model", hidden_size=128), home / "out" / "bundle"
    table = answer(model, 40, tokens=4)
    write_log(table, home / "log", home / "spool")
    (home / "retort.toml").write_text(CONFIG)
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.echo", printed.append)
        words = ("--scheme", "int8", "--out", bundle, "-c", home / "retort.toml")
        assert quantize(model, *words, "--no-check", "--json") == 0
    manifest = verify_bundle(bundle, tokenizer_hash=tokenizer_hash(model))
    return Made(home, model, bundle, table, printed[0], manifest)


def tensors(folder: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return loaded


def test_a_bundle_is_never_compared_on_rows_that_it_was_calibrated_on(made: Made) -> None:
    is_heldout = heldout_mask(made.table, 0.5)
    calibrated = made.table.filter(pa.array(~is_heldout))["prompt_ids"].to_pylist()

    rows = rows_to_compare(
        Log(made.home / "log"), made.model, made.bundle, Choice("true", 400, 0.95)
    )

    asked = [rows.dataset.prompt_ids.row(row).tolist() for row in range(len(rows.dataset))]
    assert rows.heldout_fraction == 0.5
    assert len(asked) == int(is_heldout.sum())
    assert not [prompt for prompt in asked if prompt in calibrated]


def test_every_linear_layer_is_int8_and_close_to_what_it_was(made: Made) -> None:
    before, after = tensors(made.model), tensors(made.bundle)

    packed = [name for name, tensor in after.items() if tensor.dtype == torch.int8]
    assert len(packed) == LAYERS
    for name in packed:
        scale = after[f"{name}_scale"]
        assert scale.shape == (before[name].shape[0], 1)
        restored = after[name].float() * scale.float()
        error = (restored - before[name].float()).norm() / before[name].float().norm()
        assert error < 2.5 / largest_int8_weight(), name


def test_everything_else_is_the_same(made: Made) -> None:
    before, after = tensors(made.model), tensors(made.bundle)
    packed = {name for name, tensor in after.items() if tensor.dtype == torch.int8}

    assert set(after) == set(before) | {f"{name}_scale" for name in packed}
    for name in set(before) - packed:
        assert torch.equal(after[name], before[name]), name
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (made.bundle / name).read_bytes() == (made.model / name).read_bytes()


def test_the_configuration_says_how_it_was_done_and_keeps_the_rest(made: Made) -> None:
    config = json.loads((made.bundle / "config.json").read_text())
    described = config.pop("quantization_config")

    group = described["config_groups"]["group_0"]
    assert config == json.loads((made.model / "config.json").read_text())
    assert (described["quant_method"], described["ignore"]) == ("compressed-tensors", ["lm_head"])
    assert (group["weights"]["num_bits"], group["weights"]["strategy"]) == (8, "channel")
    assert group["input_activations"]["dynamic"] is True


# compressed-tensors compiles a function when imported, and torch's compiler warns of itself.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_library_that_knows_nothing_of_us_reads_the_same_model(made: Made) -> None:
    ids = torch.randint(5, 200, (4, 12), generator=torch.Generator().manual_seed(0))
    original = AutoModelForCausalLM.from_pretrained(made.model)

    bundle = AutoModelForCausalLM.from_pretrained(made.bundle)

    with torch.inference_mode():
        before = original(ids).logits.log_softmax(-1)
        after = bundle(ids).logits.log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1).mean()
    assert 0 < kl < 0.01


def test_the_manifest_tells_where_the_bundle_comes_from(made: Made) -> None:
    lineage, quality = made.manifest.lineage, made.manifest.quality
    is_heldout = heldout_mask(made.table, 0.5)
    seen = choose_rows(made.table.filter(~is_heldout), 24, 512, seed=0)

    assert Manifest.model_validate_json(made.printed) == made.manifest
    assert lineage.parent_revision == model_revision(made.model)
    assert lineage.scheme == "int8"
    assert lineage.calibration_digest == seen.digest
    assert quality["rows"] == is_heldout.sum()
    assert quality["unquantized_kl_to_teacher_nats"] < quality["kl_to_teacher_nats"] < 0.05
    assert quality["engine_checked"] == 0
    assert 0 < quality["kl_to_parent_nats"] < 0.05
    assert 0.25 < quality["layers_size_ratio"] < 0.27  # of float32
    assert made.manifest.parameters == sum(t.numel() for t in tensors(made.model).values())


def test_only_the_bundle_is_left_behind(made: Made) -> None:
    assert [path.name for path in made.bundle.parent.iterdir()] == ["bundle"]


def test_a_checkpoint_keeps_its_lineage_and_its_own_held_out_share(made: Made) -> None:
    model = make_tiny_model(made.home / "checkpoint", hidden_size=128)
    teacher = model_revision(model)
    lineage = Lineage(teacher_revision=teacher, recipe={"heldout_fraction": 0.25})
    write_manifest(model, kind="checkpoint", lineage=lineage, parameters=1, quality={})
    out = made.home / "of_checkpoint"

    quantize(model, "--scheme=int8", "--out", out, "-c", made.home / "retort.toml", "--no-check")

    manifest = verify_bundle(out, tokenizer_hash=None)
    assert manifest.lineage.recipe["heldout_fraction"] == 0.25
    assert manifest.lineage.teacher_revision == teacher
    assert manifest.quality["rows"] == heldout_mask(made.table, 0.25).sum()


def refuse(home: Path, model: Path, out: str) -> None:
    words = [str(model), "--scheme=int8", "--out", str(home / out), "-c", str(home / "retort.toml")]
    quantize_app([*words, "--no-check"], prog_name="retort quantize")


def test_what_no_bundle_may_hold_is_refused_before_any_work(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(made.model, made.home / "own_code"))
    (model / "modeling_own.py").touch()
    read: list[Path] = []
    monkeypatch.setattr(
        "quant.quantization.open_decoder", lambda folder, _keep: read.append(folder)
    )

    with pytest.raises(ManifestError, match=r"modeling_own\.py: holds code"):
        refuse(made.home, model, "of_code")

    assert read == []


def test_a_model_in_a_hugging_face_cache_is_quantized(made: Made) -> None:
    snapshot, blobs = made.home / "cache/snapshots/main", made.home / "cache/blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(made.model, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs", path.name))
    out = made.home / "of_cache"

    quantize(snapshot, "--scheme=int8", "--out", out, "-c", made.home / "retort.toml", "--no-check")

    manifest = verify_bundle(out, tokenizer_hash=None)
    assert manifest.files == made.manifest.files


def test_a_bundle_is_not_quantized_again_and_leaves_nothing(made: Made) -> None:
    with pytest.raises(CompressionError, match="quantized already"):
        refuse(made.home, made.bundle, "again")

    assert not list(made.home.glob("*again*"))


def test_a_model_that_would_be_measured_wrongly_is_refused_before_any_work(made: Made) -> None:
    folder = made.home / "granite"
    shutil.copytree(made.model, folder)
    (folder / "model.safetensors").unlink()
    make_model("Granite", vocab_size=261).save_pretrained(folder)

    with pytest.raises(CompressionError, match="type granite cannot be used"):
        refuse(made.home, folder, "wrong")
    words = ["sensitivity", str(folder), "-c", str(made.home / "retort.toml")]
    with pytest.raises(CompressionError, match="type granite cannot be used"):
        quantize_app(words, prog_name="retort quantize")
    assert not list(made.home.glob("*wrong*"))


def test_an_existing_folder_and_a_missing_model_are_refused_at_once(made: Made) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        refuse(made.home, made.model, "log")
    with pytest.raises(ConfigError, match=r"no config\.json there"):
        refuse(made.home, made.home / "nowhere", "new")


def test_a_model_in_several_files_stays_so(made: Made) -> None:
    model = make_tiny_model(made.home / "sharded", hidden_size=128)
    stored = tensors(model)
    (model / "model.safetensors").unlink()
    names = sorted(stored)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in halves.items():
        save_file({name: stored[name] for name in part}, model / shard, {"format": "pt"})
    places = {name: shard for shard, part in halves.items() for name in part}
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))

    words = ("--scheme=int8", "-c", made.home / "retort.toml", "--no-check")
    quantize(model, "--out", made.home / "of_sharded", *words)

    found = {s: set(load_file(made.home / "of_sharded" / s)) for s in halves}
    written = json.loads((made.home / "of_sharded" / index.name).read_text())["weight_map"]
    assert {name: shard for shard, names in found.items() for name in names} == written
    assert set(written) == set(tensors(made.bundle))


def test_what_keeps_too_little_of_a_slice_is_published_only_by_force(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compared(before: Measured, after: Measured) -> Figures:
        assert before.keys() == after.keys()
        return {"quality_ratio": 0.99, "quality_ratio_rare": 0.5}

    monkeypatch.setattr("quant.quantization.compared", compared)
    out = made.home / "poor"
    words = ["--scheme=int8", f"--out={out}", "-c", str(made.home / "retort.toml"), "--no-check"]

    with pytest.raises(CompressionError, match=r"keeps 50\.0% .* slice 'rare', .* is 90\.0%"):
        quantize_app([str(made.model), *words], prog_name="retort quantize")
    assert not list(made.home.glob("*poor*"))

    quantize(made.model, *words, "--force")
    assert verify_bundle(out, tokenizer_hash=None).quality["forced"] == 1


def test_a_budget_that_changes_nothing_is_refused(made: Made) -> None:
    words = ["--scheme=mixed", "--budget=1", f"--out={made.home / 'same'}", "--no-check"]

    with pytest.raises(CompressionError, match="every layer stays as it is"):
        quantize_app(
            [str(made.model), *words, "-c", str(made.home / "retort.toml")],
            prog_name="retort quantize",
        )


def test_a_checkpoint_trained_for_another_format_is_refused(made: Made) -> None:
    words = ["--scheme=int4-qat", f"--out={made.home / 'qat'}", "--no-check"]

    with pytest.raises(CompressionError, match="trained without fake quantization; train it with"):
        quantize_app(
            [str(made.model), *words, "-c", str(made.home / "retort.toml")],
            prog_name="retort quantize",
        )


def trained_for_int8(folder: Path, largest: int) -> Path:
    model = make_tiny_model(folder, hidden_size=128)
    grid: JsonValue = {"low": -largest, "high": largest, "group": None}
    recipe: dict[str, JsonValue] = {"fake_quantize": "int8", "fake_quantize_grid": grid}
    lineage = Lineage(teacher_revision=model_revision(model), recipe=recipe)
    write_manifest(model, kind="checkpoint", lineage=lineage, parameters=1, quality={})
    return model


def test_a_bundle_tells_up_to_which_weight_it_was_trained(made: Made) -> None:
    model, out = trained_for_int8(made.home / "up_to_64", 64), made.home / "of_up_to_64"
    words = ("--scheme=int8-qat", "--target=hopper", "-c", made.home / "retort.toml")

    assert quantize(model, *words, "--out", out) == 0

    recipe = verify_bundle(out, tokenizer_hash=None).lineage.recipe["quantization"]
    assert isinstance(recipe, dict)
    assert recipe["largest_weight"] == 64
    weights = [tensor for tensor in tensors(out).values() if tensor.dtype == torch.int8]
    assert max(int(weight.abs().max()) for weight in weights) == 64


def test_a_checkpoint_trained_for_larger_weights_is_refused_before_any_work(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read = trained_for_int8(made.home / "up_to_127", 127), list[Path]()
    monkeypatch.setattr("quant.quantization.largest_int8", lambda _target: 64)
    monkeypatch.setattr(
        "quant.quantization.open_decoder", lambda folder, _keep: read.append(folder)
    )
    words = ["--scheme=int8-qat", f"--out={made.home / 'of_up_to_127'}", "--no-check"]

    with pytest.raises(CompressionError, match="exact up to 64 only"):
        quantize_app(
            [str(model), *words, "-c", str(made.home / "retort.toml")],
            prog_name="retort quantize",
        )

    assert read == []


def test_a_bundle_for_another_machine_is_made_unchecked(made: Made) -> None:
    out = made.home / "for_hopper"
    words = ("--scheme=int4-rtn", "--target=hopper", "-c", made.home / "retort.toml")

    assert quantize(made.model, *words, "--out", out) == 0

    manifest = verify_bundle(out, tokenizer_hash=None)
    assert manifest.quality["engine_checked"] == 0
    recipe = manifest.lineage.recipe["quantization"]
    assert isinstance(recipe, dict)
    assert (recipe["target"], recipe["largest_weight"]) == ("hopper", 127)


def test_a_plain_text_can_be_calibrated_on(made: Made) -> None:
    (made.home / "plain.txt").write_text("It was the best of times. " * 40)
    config = made.home / "plain.toml"
    config.write_text(f'{CONFIG}calibration_text = "{made.home / "plain.txt"}"\nmax_length = 32\n')
    out = made.home / "of_text"

    assert quantize(made.model, "--scheme=int8", "--out", out, "-c", config, "--no-check") == 0

    lineage = verify_bundle(out, tokenizer_hash=None).lineage
    assert lineage.calibration_digest != made.manifest.lineage.calibration_digest


def test_what_has_no_token_to_compare_gets_no_figure(made: Made) -> None:
    config, out = made.home / "short.toml", made.home / "of_prompts"
    config.write_text(f"{CONFIG}max_length = 1\n")  # no answer fits in beside its prompt

    assert quantize(made.model, "--scheme=int4-rtn", "--out", out, "-c", config, "--no-check") == 0

    quality = verify_bundle(out, tokenizer_hash=None).quality
    assert quality["rows"] > 0
    assert not {"kl_to_parent_nats", "top1_agreement_with_parent"} & set(quality)


def test_sensitivity_is_shown_and_written(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = made.home / "sensitivity"
    words = ("--budget=0.2", "-c", made.home / "retort.toml", "--out", out, "--json")

    assert quantize("sensitivity", made.model, *words) == 0

    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((out / "sensitivity.json").read_text())
    assert content["size_ratio"] <= 0.2
    chosen = [row["group"] for row in content["rows"] if row["chosen"]]
    assert len(chosen) == len(set(chosen)) == 8
    assert "<svg" in (out / "sensitivity.html").read_text()
