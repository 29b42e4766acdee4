from pathlib import Path

import pytest

from capture.errors import ConfigError
from quant.matrix import check_places


def test_a_folder_that_holds_something_is_refused_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / "matrix"
    check_places([tmp_path / "teacher"], out)
    out.mkdir()
    check_places([tmp_path / "teacher"], out)
    (out / "matrix.json").touch()

    with pytest.raises(ConfigError, match="not an empty folder"):
        check_places([tmp_path / "teacher"], out)
    with pytest.raises(ConfigError, match="not an empty folder"):
        check_places([tmp_path / "teacher"], out / "matrix.json")


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    models = [tmp_path / run / "checkpoint" for run in ("one", "two")]

    with pytest.raises(ConfigError, match="found checkpoint, checkpoint: rename or link"):
        check_places(models, tmp_path / "matrix")
