"""One quantization: a model folder and rows of the log become a bundle that the engine serves."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import torch
from pydantic import JsonValue
from torch import nn
from transformers import PreTrainedModel

from capture.revision import model_revision, tokenizer_hash
from quant.blocks import open_decoder
from quant.bundle import publish
from quant.calibration import (
    Calibration,
    Tokens,
    choose_rows,
    heldout_mask,
    only_tokenizer,
    text_sample,
)
from quant.compressor import Formats, batches_of, linear_layers
from quant.config import QuantConfig
from quant.errors import CompressionError
from quant.heldout import Figures, HeldOut, Measured, check_floor, compared
from quant.making import largest_weight, make, trained_format, uniform_formats
from quant.memory import check_memory
from quant.mixing import Sensitivity, search
from quant.packed import size_ratio, write_packed
from quant.paged import Keep, keep_in
from quant.reading import open_packed
from quant.reference import Reference
from quant.schemes import COMPRESSOR, Scheme
from quant.screen import Screen
from quant.source import check_source
from quant.target import Target, largest_int8
from quant.tool import compress, open_made
from trainer.manifest import MANIFEST, Lineage, Manifest, verify_folder
from trainer.student import count_parameters

Trial = Callable[[Path, PreTrainedModel, Sequence[Tokens]], Figures]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for.

    Attributes:
        scheme: One that the target serves.
        target: What is to serve the bundle.
        budget: Share of the layers' size that mixed formats may take.
        is_forced: Publish below the floor too, and say so.
    """

    scheme: Scheme
    target: Target
    budget: float = 0.35
    is_forced: bool = False


@dataclass(frozen=True, slots=True)
class Quantization:
    """A run whose rows are chosen.

    Attributes:
        parent: Lineage of the model, empty for a folder that was not made here.
        heldout_fraction: Of the prompts, that it is not calibrated on.
        snapshot: Identity of the log's rows.
        calibration: What the model is run on.
        heldout: What it is examined on; None if the log has no such row of the model's teacher.
    """

    model: Path
    parent: Lineage
    wish: Wish
    config: QuantConfig
    heldout_fraction: float
    snapshot: dict[str, JsonValue]
    calibration: Calibration
    heldout: HeldOut | None

    @classmethod
    def prepare(
        cls,
        model: Path,
        wish: Wish,
        config: QuantConfig,
        table: pa.Table,
        snapshot: dict[str, JsonValue],
    ) -> Self:
        """Verify the model's folder and choose rows of the log.

        Args:
            model: A checkpoint, or any Hugging Face folder with safetensors.
            wish: What to make of it.
            config: The ``[quant]`` table.
            table: Rows of the log's ``examples`` view, with ``trainer.dataset.COLUMNS``.
            snapshot: What names those rows again.

        Raises:
            ManifestError: If the checkpoint is not what its manifest says, or the folder holds
                what no bundle may.
            CalibrationError: If no row can be used.
            CompressionError: If the model is quantized already, its weights are not there, or it
                was trained for other ones than the scheme's.
        """
        if "quantization_config" in _config(model):
            raise CompressionError(
                f"{model}: the model is quantized already; give the checkpoint it came from"
            )
        check_source(model)
        parent = verify_folder(model).lineage if (model / MANIFEST).exists() else Lineage()
        if wish.scheme.method == "qat":
            trained_format(wish.scheme, parent, largest_int8(wish.target))
        fraction = float(str(parent.recipe.get("heldout_fraction", config.heldout_fraction)))
        table = only_tokenizer(table, tokenizer_hash(model))
        is_heldout = heldout_mask(table, fraction)
        if config.calibration_text is not None:
            calibration = text_sample(config.calibration_text, model, config)
        else:
            calibration = choose_rows(
                table.filter(~is_heldout), config.calibration_rows, config.max_length, config.seed
            )
        teacher = parent.teacher_revision or model_revision(model)
        is_teachers = pa.compute.equal(table["model_revision"], teacher)
        measured = table.filter(pa.compute.and_(pa.array(is_heldout), is_teachers))
        heldout = HeldOut.of(measured, model, config.max_length)
        return cls(model, parent, wish, config, fraction, snapshot, calibration, heldout)

    def run(self, out: Path, trial: Trial | None, screen: Screen) -> Manifest:
        """Quantize, measure, try in the engine, publish; the bundle appears whole or not at all.

        What would not fit into memory is kept in nameless files beside the bundle.

        Args:
            out: Folder of the bundle; must not exist.
            trial: Called with the finished folder, the model it holds and token ids to try it on;
                raises if it cannot be served. None skips it.
            screen: Shows the progress.

        Raises:
            QuantError: If the model cannot be quantized or published.
            ModelError: If the folder holds no model.
            EngineError: If the engine does not serve the result.
        """
        torch.set_num_threads(self.config.threads)
        screen.say("reading the model")
        out.parent.mkdir(parents=True, exist_ok=True)
        keep = keep_in(out.parent)
        model = open_decoder(self.model, keep)
        parameters = count_parameters(model)
        check_memory(self.wish.scheme, model, linear_layers(model), is_tried=trial is not None)
        before = self._measure(model, keep, screen)
        reference = self._reference(model, keep)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            draft = Path(scratch, "draft")
            draft.mkdir()
            model, figures = self._make(model, draft, keep, screen)
            after = self._measure(model, keep, screen)
            figures |= compared(before, after) if before and after else {}
            if reference is not None:
                seen = reference.compare(model)
                figures |= {"kl_to_parent_nats": seen.kl_nats}
                figures |= {"top1_agreement_with_parent": seen.top1_agreement}
            name, is_forced = self.wish.scheme.name, self.wish.is_forced
            check_floor(figures, self.config.floor, name, screen, is_forced=is_forced)
            figures["engine_checked"] = float(trial is not None)
            if trial is not None:
                screen.say(f"trying it in {self.wish.scheme.engine}")
                figures |= trial(draft, model, self.calibration.sample.sequences)
            lineage = self._lineage()
            return publish(draft, out, lineage=lineage, parameters=parameters, quality=figures)

    @property
    def vocabulary(self) -> int:
        """Token ids that the model has."""
        return int(_config(self.model)["vocab_size"])

    def measure_parent(self, screen: Screen) -> Measured | None:
        """Examine the model as it is; None if the log has no row for it."""
        torch.set_num_threads(self.config.threads)
        keep = keep_in(Path(tempfile.gettempdir()))
        return self._measure(open_decoder(self.model, keep), keep, screen)

    def search(self, screen: Screen) -> Sensitivity:
        """Try every group of layers in every format, and leave nothing behind.

        Raises:
            CompressionError: If the model has no layer to quantize, or one of odd width.
            ModelError: If the folder holds no model.
        """
        torch.set_num_threads(self.config.threads)
        screen.say("reading the model")
        keep = keep_in(Path(tempfile.gettempdir()))
        return self._search(open_decoder(self.model, keep), keep, screen)

    def _search(self, model: PreTrainedModel, keep: Keep, screen: Screen) -> Sensitivity:
        largest = largest_int8(self.wish.target)
        return search(model, self.calibration.sample, self.config, largest, keep, screen)

    def _make(
        self, model: PreTrainedModel, draft: Path, keep: Keep, screen: Screen
    ) -> tuple[PreTrainedModel, Figures]:
        """Write the bundle's folder; return the model it holds, and its layers' size."""
        scheme, layers = self.wish.scheme, linear_layers(model)
        weights = sum(layer.weight.numel() for layer in layers.values())
        stored = weights * model.config.dtype.itemsize
        if scheme.method == "gguf":
            made, sizes, figures = self._make_gguf(model, draft, screen)
            packed = sum(sizes[f"{name}.weight"] for name in layers)
            return made, figures | {"layers_size_ratio": packed / stored}
        if scheme.library == COMPRESSOR:
            screen.say(f"quantizing with {COMPRESSOR}")
            packed = compress(self.model, draft, scheme, self.calibration.sample, self.config)
            figures = {"layers_size_ratio": packed / stored}
            if scheme.method == "awq":
                return open_packed(draft, keep), figures
            rounds_inputs = scheme.rounds_inputs(self.wish.target)
            return open_made(draft, rounds_inputs=rounds_inputs), figures
        formats = self._formats(model, keep, screen)
        ignored = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        batches = list(batches_of(self.calibration.sample.sequences, self.config.batch_tokens))
        rounded, changed = make(model, scheme, formats, batches, keep, screen)
        if not rounded:
            raise CompressionError(
                f"under a budget of {self.wish.budget:.0%} every layer stays as it is; give a "
                "smaller --budget"
            )
        ignored = [name for name in ignored if name not in rounded]
        write_packed(self.model, draft, rounded, ignored, changed, keep)
        return model, {"layers_size_ratio": size_ratio(rounded, layers, stored)}

    def _make_gguf(
        self, model: PreTrainedModel, draft: Path, screen: Screen
    ) -> tuple[PreTrainedModel, dict[str, int], Figures]:
        from quant.llamacpp.making import find_reading, judged, make_gguf  # noqa: PLC0415 - extra

        sequences = self.calibration.sample.sequences
        reading = find_reading(self.model, draft, model, sequences, screen)
        figures = judged(reading, is_forced=self.wish.is_forced)
        made = make_gguf(self.model, draft, model, self.wish.scheme, reading.pre, screen)
        return *made, figures

    def _formats(self, model: PreTrainedModel, keep: Keep, screen: Screen) -> Formats:
        if self.wish.scheme.method == "mixed":
            found = self._search(model, keep, screen)
            return found.formats_of(found.choose(self.wish.budget))
        largest, group = largest_int8(self.wish.target), self.config.group_size
        return uniform_formats(linear_layers(model), self.wish.scheme, self.parent, group, largest)

    def _reference(self, model: PreTrainedModel, keep: Keep) -> Reference | None:
        if self.heldout is None:
            return None
        return Reference.of(model, self.heldout.sample, self.config.batch_tokens, keep)

    def _measure(self, model: PreTrainedModel, keep: Keep, screen: Screen) -> Measured | None:
        if self.heldout is None:
            return None
        screen.say("measuring on held-out rows")
        return self.heldout.measure(model, self.config.batch_tokens, keep)

    def _lineage(self) -> Lineage:
        settings = self.config.model_dump(
            mode="json",
            include={"calibration_rows", "calibration_text", "max_length", "seed", "group_size"},
        )
        quantization: dict[str, JsonValue] = {
            **settings,
            "target": self.wish.target,
            "budget": self.wish.budget if self.wish.scheme.method == "mixed" else None,
            "largest_weight": largest_weight(
                self.wish.scheme, self.parent, largest_int8(self.wish.target)
            ),
            "snapshot": self.snapshot,
        }
        recipe = {"heldout_fraction": self.heldout_fraction, "quantization": quantization}
        return self.parent.model_copy(
            update={
                "parent_revision": model_revision(self.model),
                "scheme": self.wish.scheme.name,
                "recipe": {**self.parent.recipe, **recipe},
                "calibration_digest": self.calibration.digest,
            }
        )


def _config(model: Path) -> dict[str, Any]:
    """Of a model's folder."""
    content: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return content
