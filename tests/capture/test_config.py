from pathlib import Path

import pytest

from capture.config import CaptureConfig, load
from capture.errors import ConfigError
from capture.store import S3Path


def written(folder: Path, text: str) -> Path:
    path = folder / "retort.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_folders_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load(written(tmp_path, '[capture]\nlog = "here"\n'))

    assert config.log == tmp_path / "here"
    assert config.spool == tmp_path / "spool"


def test_a_log_in_a_bucket_is_where_its_url_says(tmp_path: Path) -> None:
    config = load(written(tmp_path, '[capture]\nlog = "s3://bucket/team/log/"\n'))

    assert config.log == S3Path("bucket", "team/log")
    assert config.spool == tmp_path / "spool"
    assert config.model_dump(mode="json")["log"] == "s3://bucket/team/log"


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///log", "s3://key:secret@bucket/log", "s3://b/l?x=1"]
)
def test_a_url_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"\[capture\]\.log is .*expected s3://bucket/prefix"):
        load(written(tmp_path, f'[capture]\nlog = "{url}"\n'))


def test_an_absent_table_gives_the_defaults(tmp_path: Path) -> None:
    assert load(written(tmp_path, "")).mass == CaptureConfig().mass


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[capture\]\.k_maxx .* did you mean 'k_max'"):
        load(written(tmp_path, "[capture]\nk_maxx = 3\n"))


def test_an_unknown_table_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="captur is not a known key; did you mean 'capture'"):
        load(written(tmp_path, "[captur]\nk_max = 3\n"))


def test_the_other_packages_tables_are_left_to_them(tmp_path: Path) -> None:
    others = "[gateway]\nx = 1\n[trainer]\nx = 1\n[quant]\nx = 1\n"

    assert load(written(tmp_path, others)).mass == CaptureConfig().mass


def test_a_wrong_value_is_shown_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[capture\]\.mass is 2\.0: .*less than or equal to 1"):
        load(written(tmp_path, "[capture]\nmass = 2.0\n"))


def test_k_min_above_k_max_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[capture\]: k_min is 9"):
        load(written(tmp_path, "[capture]\nk_min = 9\nk_max = 8\n"))


def test_a_missing_file_and_bad_toml_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(written(tmp_path, "[capture\n"))
