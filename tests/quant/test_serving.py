from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from capture.engine import Engine
from capture.errors import EngineError
from quant.calibration import Tokens
from quant.config import QuantConfig
from quant.errors import CompressionError
from quant.heldout import Figures
from quant.quantization import Quantization, Wish
from quant.schemes import find_scheme
from quant.screen import Screen
from quant.serving import examine, trial_spec
from quant.target import this_target
from tests.support.answered_rows import answer
from tests.support.tiny_model import make_tiny_model
from trainer.student import open_teacher

IN_FLOAT32 = (*QuantConfig().engine_args, "--dtype", "float32")  # to compare exactly
CONFIG = QuantConfig(calibration_rows=16, floor=0.0, engine_args=IN_FLOAT32)


@dataclass(frozen=True)
class Prepared:
    model: Path
    job: Quantization


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    torch.set_num_threads(1)
    model = make_tiny_model(tmp_path_factory.mktemp("quant") / "model", hidden_size=192)
    table = answer(model, 24, tokens=3)
    wish = Wish(find_scheme("int8", this_target()), this_target())
    return Prepared(model, Quantization.prepare(model, wish, CONFIG, table, {}))


def test_what_the_engine_refuses_is_not_published(prepared: Prepared, tmp_path: Path) -> None:
    seen: list[str] = []

    def refuse(draft: Path, _model: PreTrainedModel, _rows: Sequence[Tokens]) -> Figures:
        seen.extend(sorted(path.name for path in draft.iterdir()))
        raise EngineError("no kernel")

    with Screen.opened() as screen, pytest.raises(EngineError, match="no kernel"):
        prepared.job.run(tmp_path / "bundle", refuse, screen)

    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(seen)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_an_engine_that_computes_something_else_is_found_out(
    prepared: Prepared, tmp_path: Path
) -> None:
    held: list[PreTrainedModel] = []

    def keep(_draft: Path, model: PreTrainedModel, _rows: Sequence[Tokens]) -> Figures:
        held.append(model)
        return {}

    with Screen.opened() as screen:
        prepared.job.run(tmp_path / "bundle", keep, screen)
    another = open_teacher(prepared.model, torch.device("cpu"))
    with torch.no_grad():
        another.lm_head.weight.mul_(0.8)
    rows = prepared.job.calibration.sample.sequences

    with Engine.start(trial_spec(tmp_path / "bundle", CONFIG, tmp_path / "engine.log")) as engine:
        engine.wait_ready()
        figures = examine(engine, held[0], rows)
        with pytest.raises(CompressionError, match="computes something else than the bundle says"):
            examine(engine, another, rows)

    assert figures["engine_logprob_mean_nats"] < 5e-3
