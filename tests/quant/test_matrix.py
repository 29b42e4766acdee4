import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import torch
from transformers import PreTrainedModel

from capture.engine import EngineSpec
from capture.errors import ConfigError
from capture.log import Log
from quant.calibration import Tokens
from quant.config import QuantConfig
from quant.heldout import Figures
from quant.matrix import check_places, measure_models
from quant.schemes import find_scheme
from quant.screen import Screen
from quant.speed import Speed
from quant.target import this_target
from tests.support.answered_rows import answer, write_log
from tests.support.tiny_model import make_tiny_model


def a_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    return folder


def test_a_folder_that_holds_something_is_refused_before_any_work(tmp_path: Path) -> None:
    out, teacher = tmp_path / "matrix", a_model(tmp_path / "teacher")
    check_places([teacher], out)
    out.mkdir()
    check_places([teacher], out)
    (out / "matrix.json").touch()

    with pytest.raises(ConfigError, match="not an empty folder"):
        check_places([teacher], out)
    with pytest.raises(ConfigError, match="not an empty folder"):
        check_places([teacher], out / "matrix.json")


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    models = [a_model(tmp_path / run / "checkpoint") for run in ("one", "two")]

    with pytest.raises(ConfigError, match="found checkpoint, checkpoint: rename or link"):
        check_places(models, tmp_path / "matrix")


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher: no config\.json there"):
        check_places([tmp_path / "teacher"], tmp_path / "matrix")


@dataclass(frozen=True, eq=False)
class IdleEngine:
    """Stands for one that serves; what it would be asked is answered by ``Tried``."""

    spec: EngineSpec

    @classmethod
    def start(cls, spec: EngineSpec) -> Self:
        spec.log_path.touch()
        return cls(spec)

    def wait_ready(self, _timeout_seconds: float) -> None:
        """It is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing runs."""


@dataclass
class Tried:
    """The first bundle's engine does not answer in time, the others do."""

    out: Path
    written: list[list[str]] = field(default_factory=list)  # in matrix.json, trial by trial

    def examine(
        self, _engine: IdleEngine, _model: PreTrainedModel, _rows: Sequence[Tokens]
    ) -> Figures:
        self.written.append(schemes_in(json.loads((self.out / "matrix.json").read_text())))
        if len(self.written) == 1:
            raise httpx.ReadTimeout("timed out")
        return {"engine_logprob_mean_nats": 0.0}


def schemes_in(content: dict[str, Any]) -> list[str]:
    return [row["scheme"] for row in content["rows"]]


def as_fast(engines: Sequence[IdleEngine], _vocabulary: int) -> list[Speed]:
    return [Speed((1.0,), (1.0,), 1) for _ in engines]


@pytest.mark.slow
def test_one_scheme_that_fails_costs_nothing_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    model, out = make_tiny_model(tmp_path / "model", hidden_size=128), tmp_path / "matrix"
    write_log(answer(model, 40, tokens=4), tmp_path / "log", tmp_path / "spool")
    tried = Tried(out)
    for name, stand_in in (
        ("Engine", IdleEngine),
        ("examine", tried.examine),
        ("compare_speeds", as_fast),
    ):
        monkeypatch.setattr(f"quant.matrix.{name}", stand_in)
    schemes = [find_scheme(name, this_target()) for name in ("int8-weight", "int4-rtn")]
    config = QuantConfig(calibration_rows=16, heldout_fraction=0.5)

    with Screen.opened() as screen:
        content = measure_models([model], config, Log(tmp_path / "log"), out, schemes, screen)

    assert tried.written == [["none"], ["none", "int8-weight"]]
    assert json.loads((out / "matrix.json").read_text()) == content
    plain, failed, kept = content["rows"]
    assert (failed["made"], failed["served"]) == (True, False)
    assert failed["error"] == "ReadTimeout: timed out"
    assert (kept["served"], kept["error"]) == (True, None)
    assert kept["quality_ratio_worst"] is None  # of too few right answers
    assert content["advice"].startswith("Take model: ")
    assert plain["pareto"]
    assert not failed["pareto"]
