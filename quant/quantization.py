"""One quantization: a model folder and rows of the log become a bundle that the engine serves."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import torch
from pydantic import JsonValue
from torch import nn
from transformers import PreTrainedModel

from capture.host import largest_int8_weight
from capture.revision import model_revision, tokenizer_hash
from quant.bundle import publish
from quant.calibration import Calibration, choose_rows, heldout_mask, only_tokenizer
from quant.compressor import linear_layers, quantize_layers
from quant.config import QuantConfig
from quant.packed import write_packed
from quant.schemes import Scheme
from quant.screen import Screen
from trainer.dataset import from_table
from trainer.evaluation import evaluate
from trainer.manifest import MANIFEST, Lineage, Manifest, verify_folder
from trainer.student import count_parameters, open_teacher

MEASURED_ROWS = 512  # held-out examples at most
COMPARED = ("kl_to_teacher_nats", "top1_agreement")  # with the model before

Trial = Callable[[Path], None]
Quality = dict[str, float]


@dataclass(frozen=True, slots=True)
class Quantization:
    """A run whose rows are chosen.

    Attributes:
        parent: Lineage of the model, empty for a folder that was not made here.
        snapshot: Identity of the log's rows.
        calibration: What the model is run on.
        measured: Held-out rows of the model's teacher; may be none.
    """

    model: Path
    parent: Lineage
    scheme: Scheme
    config: QuantConfig
    snapshot: dict[str, JsonValue]
    calibration: Calibration
    measured: pa.Table

    @classmethod
    def prepare(
        cls,
        model: Path,
        scheme: Scheme,
        config: QuantConfig,
        table: pa.Table,
        snapshot: dict[str, JsonValue],
    ) -> Self:
        """Verify the model's folder and choose rows of the log.

        Args:
            model: A checkpoint, or any Hugging Face folder with safetensors.
            scheme: One that this host serves.
            config: The ``[quant]`` table.
            table: Rows of the log's ``examples`` view, with ``trainer.dataset.COLUMNS``.
            snapshot: What names those rows again.

        Raises:
            ManifestError: If the checkpoint is not what its manifest says.
            CalibrationError: If no row can be used.
        """
        parent = verify_folder(model).lineage if (model / MANIFEST).exists() else Lineage()
        fraction = parent.recipe.get("heldout_fraction", config.heldout_fraction)
        table = only_tokenizer(table, tokenizer_hash(model))
        is_heldout = heldout_mask(table, float(str(fraction)))
        calibration = choose_rows(
            table.filter(~is_heldout), config.calibration_rows, config.max_length, config.seed
        )
        teacher = parent.teacher_revision or model_revision(model)
        is_teachers = pa.compute.equal(table["model_revision"], teacher)
        measured = table.filter(pa.compute.and_(pa.array(is_heldout), is_teachers))
        measured = measured.slice(0, MEASURED_ROWS)
        return cls(model, parent, scheme, config, snapshot, calibration, measured)

    def run(self, out: Path, trial: Trial | None, screen: Screen) -> Manifest:
        """Quantize, measure, try in the engine, publish; the bundle appears whole or not at all.

        Args:
            out: Folder of the bundle; must not exist.
            trial: Called with the finished folder; raises if it cannot be served. None skips it.
            screen: Shows the progress.

        Raises:
            QuantError: If the model cannot be quantized or published.
            ModelError: If the folder holds no model.
            EngineError: If the engine does not serve the result.
        """
        torch.set_num_threads(self.config.threads)
        screen.say("reading the model")
        model = open_teacher(self.model, torch.device("cpu"))
        parameters = count_parameters(model)
        before = self._measure(model, screen)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            draft = Path(scratch, "draft")
            draft.mkdir()
            self._write(model, draft, screen)
            quality = self._measure(model, screen) | {
                f"unquantized_{name}": before[name] for name in COMPARED if name in before
            }
            quality["engine_checked"] = float(trial is not None)
            if trial is not None:
                screen.say("trying it in vLLM")
                trial(draft)
            lineage = self._lineage()
            return publish(draft, out, lineage=lineage, parameters=parameters, quality=quality)

    def _write(self, model: PreTrainedModel, draft: Path, screen: Screen) -> None:
        """Quantize in place and write the result."""
        layers = linear_layers(model)
        named = model.named_modules()
        ignored = [n for n, m in named if isinstance(m, nn.Linear) and n not in layers]
        screen.say(f"quantizing on {len(self.calibration.sequences)} examples", len(layers))
        weights = quantize_layers(
            model,
            layers,
            self.calibration.sequences,
            self.config.batch_tokens,
            screen.advance,
            largest_int8_weight(),
        )
        write_packed(self.model, draft, weights, ignored)

    def _measure(self, model: PreTrainedModel, screen: Screen) -> Quality:
        """Compare with the teacher on held-out rows; empty without such rows."""
        if not self.measured.num_rows:
            return {}
        screen.say("measuring on held-out rows")
        dataset = from_table(self.measured, self.model)
        rows = torch.arange(len(dataset)).numpy()
        quality = asdict(evaluate(model, dataset, rows, self.config.batch_tokens))
        return {name: float(value) for name, value in quality.items()}

    def _lineage(self) -> Lineage:
        settings = self.config.model_dump(
            mode="json", include={"calibration_rows", "max_length", "seed"}
        )
        quantization: dict[str, JsonValue] = {
            **settings,
            "largest_weight": largest_int8_weight(),
            "snapshot": self.snapshot,
        }
        return self.parent.model_copy(
            update={
                "parent_revision": model_revision(self.model),
                "scheme": self.scheme.name,
                "recipe": {**self.parent.recipe, "quantization": quantization},
                "calibration_digest": self.calibration.digest,
            }
        )
