"""Every scheme on every model, served and measured side by side."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import JsonValue
from transformers import PreTrainedModel

from capture.engine import Engine
from capture.errors import CaptureError, ConfigError
from capture.log import Log
from capture.revision import model_revision
from quant.calibration import Tokens
from quant.config import QuantConfig
from quant.errors import QuantError
from quant.heldout import ALL, Figures, worst_slice
from quant.making import TRAINED_FOR
from quant.pareto import advice, on_front
from quant.quantization import Quantization, Wish
from quant.schemes import Scheme, served
from quant.screen import Screen
from quant.serving import examine, trial_spec
from quant.source import weights_size
from quant.speed import compare_speeds
from quant.target import this_target
from trainer.checkpoint import write_json
from trainer.dataset import COLUMNS
from trainer.errors import TrainerError
from trainer.manifest import MANIFEST, read_manifest

AS_IT_IS = "none"
TOLD = (
    "exact_match",
    "kl_to_teacher_nats",
    "kl_to_parent_nats",
    "top1_agreement_with_parent",
    "quality_ratio",
    "quality_ratio_rare",
    "engine_logprob_mean_nats",
)
OURS = (QuantError, CaptureError, TrainerError)  # their messages say what to do

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements of one call share.

    Attributes:
        config: The ``[quant]`` table.
        table: Rows of the log.
        snapshot: What names them.
        out: Folder for the bundles.
        screen: Shows the progress.
        engines: Ends them.
        running: Engines of the models as they are.
        rows: What has been measured.
    """

    config: QuantConfig
    table: pa.Table
    snapshot: dict[str, JsonValue]
    out: Path
    screen: Screen
    engines: ExitStack
    running: dict[Path, Engine] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def plain(self, model: Path) -> Engine:
        """An engine of a model as it is, started on first use and kept."""
        if model not in self.running:
            spec = trial_spec(model, self.config, self.out / f"{model.name}.engine.log")
            engine = self.engines.enter_context(Engine.start(spec))
            engine.wait_ready(self.config.engine_timeout_seconds)
            self.running[model] = engine
        return self.running[model]

    def add(self, row: Row) -> None:
        """Take a finished row, and store all so far: a later failure costs none of them."""
        self.rows.append(row)
        write_json(self.out / "matrix.json", self.content())

    def content(self) -> dict[str, Any]:
        """What ``matrix.json`` holds."""
        fronts = zip(self.rows, on_front(self.rows), strict=True)
        return {
            "target": this_target(),
            "floor": self.config.floor,
            "rows": [row | {"pareto": is_best} for row, is_best in fronts],
            "advice": advice(self.rows, self.config.floor),
        }


def measure_models(
    models: Sequence[Path],
    config: QuantConfig,
    log: Log,
    out: Path,
    schemes: Sequence[Scheme] | None,
    screen: Screen,
) -> dict[str, Any]:
    """Quantize every model by every scheme, try each in vLLM and write ``matrix.json``.

    The file is written after each row, so that what was measured outlasts what fails later.

    Args:
        models: Folders; speeds are told beside the first one's.
        config: Of each quantization.
        log: Rows to calibrate and to measure on.
        out: Folder for the bundles and ``matrix.json``; empty, or not there yet.
        schemes: To try; None tries all that this machine serves.
        screen: Shows the progress.

    Returns:
        What ``matrix.json`` holds.

    Raises:
        ConfigError: If the folder is not empty, a model is missing, or two share a name.
        CalibrationError: If the log has no rows for a model.
        EngineError: If a model as it is cannot be served.
    """
    check_places(models, out)
    out.mkdir(parents=True, exist_ok=True)
    snapshot = log.snapshot(config.where)
    table = log.read(snapshot, list(COLUMNS))
    with ExitStack() as engines:
        bench = Bench(config, table, snapshot.model_dump(mode="json"), out, screen, engines)
        for model in models:
            _measure_model(model, models[0], schemes, bench)
    return bench.content()


def check_places(models: Sequence[Path], out: Path) -> None:
    """See before any work that every bundle will have a place of its own.

    Raises:
        ConfigError: If one will not.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: not an empty folder; choose another --out or remove it")
    for model in models:
        if not (model / "config.json").is_file():
            raise ConfigError(f"{model}: no config.json there; give a Hugging Face model folder")
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"models are told apart by their folders' names, found {', '.join(names)}: rename or "
            "link one of them"
        )


def _measure_model(
    model: Path, first: Path, schemes: Sequence[Scheme] | None, bench: Bench
) -> None:
    plain = _plain_row(model, first, bench)
    bench.add(plain)
    for scheme in schemes if schemes is not None else _fitting(model):
        row: Row = {"model": plain["model"], "folder": model.name, "scheme": scheme.name}
        row |= {"library": scheme.library, "made": False, "served": False, "error": None}
        began = time.monotonic()
        try:
            _try_scheme(model, first, scheme, plain, bench, row)
        except Exception as error:  # noqa: BLE001  one scheme's; it must not end the others
            told = str(error) if isinstance(error, OURS) else f"{type(error).__name__}: {error}"
            row["error"] = told
            bench.screen.warn(f"{model.name}, {scheme.name}: {told}")
        bench.add(row | {"seconds": time.monotonic() - began})


def _fitting(model: Path) -> list[Scheme]:
    """Schemes that this machine serves; of a model trained for one format only that."""
    recipe = read_manifest(model).lineage.recipe if (model / MANIFEST).exists() else {}
    trained_for = recipe.get(TRAINED_FOR)
    here = served(this_target())
    if trained_for:
        return [scheme for scheme in here if scheme.name == f"{trained_for}-qat"]
    return [scheme for scheme in here if scheme.method != "qat"]


def _plain_row(model: Path, first: Path, bench: Bench) -> Row:
    """The model as it is."""
    bench.screen.say(f"{model.name} as it is")
    began = time.monotonic()
    any_scheme = served(this_target())[0]  # none is applied
    wish = Wish(any_scheme, this_target())
    job = Quantization.prepare(model, wish, bench.config, bench.table, bench.snapshot)
    measured = job.measure_parent(bench.screen)
    engine = bench.plain(model)
    is_student = job.parent.teacher_revision not in (None, model_revision(model))
    row: Row = {
        "model": "student" if is_student else "teacher",
        "folder": model.name,
        "scheme": AS_IT_IS,
        "library": "",
        "made": True,
        "served": True,
        "error": None,
        "size_bytes": weights_size(model),
        "size_ratio": 1.0,
        "size_ratio_layers": 1.0,
        "quality_ratio": 1.0,
        "quality_ratio_rare": 1.0,
        "kl_to_parent_nats": 0.0,
        **_speeds(engine, engine, bench.plain(first), job.vocabulary),
    }
    if measured is not None:
        quality = measured[ALL]
        row |= {"exact_match": quality.exact_match, "worst_slice": "", "quality_ratio_worst": 1.0}
        row |= {"kl_to_teacher_nats": quality.kl_to_teacher_nats}
        row |= {f"exact_match_{name}": each.exact_match for name, each in measured.items()}
    return row | {"seconds": time.monotonic() - began}


def _try_scheme(
    model: Path, first: Path, scheme: Scheme, plain: Row, bench: Bench, row: Row
) -> None:
    """Fill a row with one scheme of one model, as far as it goes."""
    out = bench.out / f"{model.name}-{scheme.name}"
    wish = Wish(scheme, this_target(), is_forced=True)
    job = Quantization.prepare(model, wish, bench.config, bench.table, bench.snapshot)

    def trial(draft: Path, made: PreTrainedModel, sequences: Sequence[Tokens]) -> Figures:
        row["made"] = True
        spec = trial_spec(draft, bench.config, bench.out / f"{out.name}.engine.log")
        with Engine.start(spec) as engine:
            engine.wait_ready(bench.config.engine_timeout_seconds)
            figures = examine(engine, made, sequences)
            row.update(_speeds(engine, bench.plain(model), bench.plain(first), job.vocabulary))
        spec.log_path.unlink()
        return figures

    figures = job.run(out, trial, bench.screen).quality
    worst = worst_slice(figures) or ("", None)
    row.update({name: figures.get(name) for name in TOLD})
    row["served"] = True
    row["size_bytes"] = weights_size(out)
    row["size_ratio"] = weights_size(out) / plain["size_bytes"]
    row["size_ratio_layers"] = figures["layers_size_ratio"]
    row["worst_slice"], row["quality_ratio_worst"] = worst


def _speeds(engine: Engine, parents: Engine, first: Engine, vocabulary: int) -> Row:
    """How fast an engine is beside its parent's and the first model's, asked in turn."""
    engines = list(dict.fromkeys([engine, parents, first]))
    speeds = dict(zip(engines, compare_speeds(engines, vocabulary), strict=True))
    ours = speeds[engine]
    return {
        "tokens_per_second_ratio": ours.decode_over(speeds[parents]),
        "prefill_ratio": ours.prefill_over(speeds[parents]),
        "memory_bytes": ours.memory_bytes,
        "speed": ours.decode_over(speeds[first]),
    }
