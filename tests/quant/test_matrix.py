from pathlib import Path

import pytest

from capture.errors import ConfigError
from quant.matrix import check_places


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
