from pathlib import Path

import pytest

from capture.errors import ConfigError
from gateway.config import GatewayConfig, check_folders, load

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


@pytest.mark.parametrize(
    ("listen", "auth", "asks"),
    [
        ("127.0.0.1:1", None, False),
        ("localhost:1", None, False),
        ("[::1]:1", None, False),
        ("0.0.0.0:1", None, True),
        ("[::]:1", None, True),
        ("10.0.0.1:1", None, True),
        ("gateway.example:1", None, True),
        ("localhost.example:1", None, True),
        ("127.0.0.1:1", "keys", True),
        ("0.0.0.0:1", "none", False),
    ],
)
def test_keys_are_asked_for_where_others_can_reach_us_unless_told(
    listen: str, auth: str | None, asks: bool
) -> None:
    config = GatewayConfig.model_validate(
        {"listen": listen, "auth": auth, "routes": {"a": {"url": "http://127.0.0.1:8000"}}}
    )
    assert config.asks_for_keys == asks
