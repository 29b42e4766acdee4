"""``retort key`` beside a gateway that asks for keys."""

import json
from pathlib import Path

import httpx
import pytest

from gateway.__main__ import main
from tests.gateway.test_relay import chat
from tests.support.gateway_process import configure, started
from tests.support.killable import wait_for


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["key", *words]) == 0
    return capsys.readouterr().out.strip()


def test_a_key_opens_a_running_gateway_within_seconds_and_closes_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(tmp_path, gateway='auth = "keys"')
    with started(config) as gateway, httpx.Client(base_url=gateway.url, timeout=10) as client:
        gateway.wait_ready()
        refused = client.post("/v1/chat/completions", json=chat("hi"))
        words = ("--tenant", "acme", "--token-budget", "5000", "-c", str(config))
        text = run(capsys, "create", *words)
        client.headers["authorization"] = f"Bearer {text}"
        wait_for(lambda: client.get("/v1/models").is_success)
        answers = [
            client.post("/v1/chat/completions", json=chat("hi", max_tokens=100)) for _ in range(3)
        ]

        def listed() -> dict[str, object]:
            (row,) = json.loads(run(capsys, "list", "-c", str(config), "--json"))
            return dict(row)

        wait_for(lambda: listed()["used"] == {"requests": 3, "tokens": 15})
        shown = listed()
        run(capsys, "revoke", str(shown["id"]), "-c", str(config))
        wait_for(lambda: client.get("/v1/models").status_code == 401)
        log = gateway.log

    assert refused.status_code == 401
    assert {answer.status_code for answer in answers} == {200}
    assert (shown["tenant"], shown["id"]) == ("acme", text.removeprefix("rt-").partition(".")[0])
    secret = text.partition(".")[2]
    assert secret not in log
    assert secret.encode() not in (tmp_path / "run" / "state.db").read_bytes()
    assert (tmp_path / "run" / "key.pepper").stat().st_mode & 0o777 == 0o600


def test_usage_of_the_last_second_is_stored_when_the_gateway_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(tmp_path, gateway='auth = "keys"')
    text = run(capsys, "create", "--tenant", "acme", "-c", str(config))
    with started(config) as gateway:
        gateway.wait_ready()
        headers = {"x-api-key": text}
        httpx.post(f"{gateway.url}/v1/chat/completions", json=chat("hi"), headers=headers)
    (row,) = json.loads(run(capsys, "list", "-c", str(config), "--json"))
    assert row["used"] == {"requests": 1, "tokens": 5}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create"], "--tenant"),
        (["create", "--tenant", "a", "--capture", "everything"], "full, text or off"),
        (["create", "--tenant", "a", "--token-budget", "0"], "--token-budget"),
        (["list", "-c", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_a_wrong_use_is_explained(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", *words]) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_key_cannot_be_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(tmp_path)
    assert main(["key", "revoke", "abc", "-c", str(config)]) == 1
    assert "`retort key list` shows them" in capsys.readouterr().err


def test_keys_are_listed_for_people_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure(tmp_path)
    words = ("--tenant", "acme", "--trusted", "--days", "3", "-c", str(config))
    key_id = run(capsys, "create", *words).removeprefix("rt-").partition(".")[0]
    assert main(["key", "list", "-c", str(config)]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert key_id in shown.err
    assert "acme" in shown.err
    assert "trusted" in shown.err
