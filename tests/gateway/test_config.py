from pathlib import Path

import pytest

from capture.errors import ConfigError
from gateway.config import check_folders, load

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
        ("", r"\[gateway\]\.routes: .*required"),
        ("[gateway.routes.a]\n", r"\[gateway\]\.routes\.a: .*either model \(a folder\) or url"),
        (ROUTE + 'captur = "off"\n', r"captur is not a known key; did you mean 'capture'\?"),
        (ROUTE + "[gateway.routes.support.guards]\nagreement_mn = 0.5\n", "agreement_min"),
        (ROUTE + "[gateway.routes.support.rollout]\nsteps = [0.5, 0.1]\n", "shares that rise"),
        (ROUTE + 'tokenizer = "t"\n', "tokenizer is only for url with capture = 'wire'"),
        ('[gateway]\nlisten = "8080"\n' + ROUTE, "is not host:port"),
        ('[gateway]\nlisten = "127.0.0.1:99999"\n' + ROUTE, "is not host:port"),
        ('[gateway]\nlisten = "127.0.0.1:8081"\n' + ROUTE, "expected two ports"),
        ('[gateway.routes.a]\nurl = "localhost:8000"\n', "such as http://127.0.0.1:8000"),
        ('[gateway.routes.a]\nurl = "http://there:8000/v1/"\n', "address without /v1"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(written(tmp_path, text))


def test_a_folder_that_is_no_model_is_named_before_anything_starts(tmp_path: Path) -> None:
    config = load(written(tmp_path, ROUTE))

    with pytest.raises(ConfigError, match=r"routes\.support\.model is .*/teacher: no config\.json"):
        check_folders(config)


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    route = 'url = "http://127.0.0.1:1"\ncapture = "wire"\ntokenizer = "nowhere"\n'
    config = load(written(tmp_path, "[gateway.routes.support]\n" + route))

    with pytest.raises(ConfigError, match=r"tokenizer is .*/nowhere: no such folder"):
        check_folders(config)
