from pathlib import Path

import pytest

from capture.errors import ConfigError
from gateway.config import load

ROUTE = '[gateway.routes.support]\nmodel = "teacher"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "retort.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_relative_to_the_file_and_the_store_has_a_default(tmp_path: Path) -> None:
    config = load(written(tmp_path, ROUTE))

    assert config.routes["support"].model == tmp_path / "teacher"
    assert config.run_dir == tmp_path / "run"
    assert config.state_store == f"sqlite:///{tmp_path}/run/state.db"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"\[gateway\]\.routes .*required"),
        ("[gateway.routes.a]\n", r"\[gateway\]\.routes\.a .*either model \(a folder\) or url"),
        (ROUTE + 'captur = "off"\n', r"captur is not a known key; did you mean 'capture'\?"),
        (ROUTE + "[gateway.routes.support.guards]\nagreement_mn = 0.5\n", "agreement_min"),
        (ROUTE + "[gateway.routes.support.rollout]\nsteps = [0.5, 0.1]\n", "shares that rise"),
        (ROUTE + 'tokenizer = "t"\n', "tokenizer is only for url with capture = 'wire'"),
        ('[gateway]\nlisten = "8080"\n' + ROUTE, "is not host:port"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(written(tmp_path, text))
