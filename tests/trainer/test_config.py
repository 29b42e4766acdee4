from pathlib import Path

import pytest

from capture.errors import ConfigError
from capture.store import S3Path
from trainer.config import load

REQUIRED = '[trainer]\nlog = "log"\nteacher = "/models/teacher"\nout = "runs/a"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_folders_are_taken_from_the_file_s_own(tmp_path: Path) -> None:
    config = load(write(tmp_path, REQUIRED + 'student = "start"\n'))
    assert config.log == tmp_path / "log"
    assert config.teacher == Path("/models/teacher")
    assert config.student == tmp_path / "start"
    assert config.out == tmp_path / "runs/a"


def test_the_log_may_be_in_a_bucket(tmp_path: Path) -> None:
    text = REQUIRED.replace('"log"', '"s3://bucket/log"')
    assert load(write(tmp_path, text)).log == S3Path("bucket", "log")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "[trainer.cut]\nlayer = 2",
            r"trainer.*cut.layer is not a known key; did you mean 'layers'",
        ),
        ("heldout_fraction = 0.0", "heldout_fraction is 0.0: .*greater than 0"),
        ("steps = 0", "steps is 0: .*greater than or equal to 1"),
        ('device = "tpu"', "device is 'tpu'"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, REQUIRED + line + "\n"))


def test_what_must_be_given_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[trainer\].teacher.*required"):
        load(write(tmp_path, '[trainer]\nlog = "log"\nout = "out"\n'))
