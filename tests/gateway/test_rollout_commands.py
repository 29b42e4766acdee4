"""``retort rollout`` against a real HTTP server: what it prints, and how it fails."""

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from fastapi import FastAPI

from gateway import commands
from gateway.__main__ import main
from gateway.admin_client import connect
from gateway.errors import NotReadyError, UpstreamTimeoutError
from gateway.state import StateStore
from tests.gateway.admin_server import KEY, create_app, serving

CONFIG = """
[gateway]
admin_listen = "{address}"
run_dir = "run"
[gateway.routes.support]
url = "http://127.0.0.1:1"
[gateway.routes.sales]
url = "http://127.0.0.1:1"
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def body(self) -> dict[str, object]:
        parsed = json.loads(self.out)
        assert isinstance(parsed, dict)
        return parsed


Run = Callable[..., Result]


def write_config(folder: Path, address: str) -> Path:
    path = folder / "retort.toml"
    path.write_text(CONFIG.format(address=address), encoding="utf-8")
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "admin.key").write_text(KEY + "\n", encoding="utf-8")
    return path


def hang_up(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.close()


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in a folder of its own, in words as wide as they like."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETORT_ADMIN_KEY", raising=False)
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setattr(commands, "POLL_SECONDS", 0.0)

    def rollout(*words: str) -> Result:
        code = main(["rollout", *words])
        return Result(code, *capsys.readouterr())

    return rollout


@pytest.fixture
def _gateway(tmp_path: Path) -> Iterator[None]:
    store = StateStore(f"sqlite:///{tmp_path / 'state.db'}")
    with serving(create_app(store)) as address:
        write_config(tmp_path, address)
        yield
    store.close()


@pytest.mark.usefixtures("_gateway")
def test_start_names_the_bundle_by_its_absolute_folder(run: Run, tmp_path: Path) -> None:
    result = run("start", "bundles/int8", "--route", "support", "--json")

    assert result.code == 0
    assert result.body["state"] == "shadow"
    assert result.body["bundle"] == str(tmp_path / "bundles" / "int8")


@pytest.mark.usefixtures("_gateway")
def test_start_and_wait_ends_well_when_the_bundle_is_live(run: Run) -> None:
    result = run("start", "int8", "--route", "support", "--wait", "--json")

    assert result.code == 0
    assert result.body["state"] == "live"
    assert result.body["canary_share"] == 1.0


@pytest.mark.usefixtures("_gateway")
def test_one_that_replaces_goes_from_watch_to_live(run: Run) -> None:
    begun = run("start", "int8", "--route", "support", "--replace", "--json")
    ended = run("start", "int8", "--route", "sales", "--replace", "--wait", "--json")

    assert begun.body["state"] == "watch"
    assert begun.body["canary_share"] == 1.0
    assert ended.body["state"] == "live"
    assert "watch" in run("status").err


@pytest.mark.usefixtures("_gateway")
def test_start_and_wait_fails_when_the_bundle_was_rolled_back(run: Run) -> None:
    result = run("start", "broken", "--route", "support", "--wait", "--json")

    assert result.code == 1
    assert result.body["state"] == "rolled_back"
    assert "retort: rollout r1 was rolled back; `retort rollout history` says why" in result.err


@pytest.mark.usefixtures("_gateway")
def test_history_says_why(run: Run) -> None:
    run("start", "broken", "--route", "support", "--wait")

    words, moves = run("history"), run("history", "r1", "--json").body["data"]

    assert "breached: agreement" in words.err
    assert "agreement: 0.100 of 250, surely at most 0.2" in words.err
    assert "expected at least 0.900" in words.err
    assert not words.out
    assert isinstance(moves, list)
    (move,) = moves
    assert (move["source"], move["target"], move["by"]) == ("shadow", "rolled_back", "guards")
    assert move["evidence"]["agreed"] == {"successes": 25, "trials": 250}


@pytest.mark.usefixtures("_gateway")
def test_status_shows_rollouts_and_what_their_guards_find(run: Run) -> None:
    assert "no rollout yet" in run("status").err
    run("start", "int8", "--route", "support")
    run("start", "[red]int8", "--route", "sales")

    words = run("status")

    assert "[red]int8" in words.err
    assert words.err.count("Guards of") == 2
    assert "canary_error_rate" not in words.err
    assert "agreement" in words.err
    assert "too_few" in words.err
    data = run("status", "--route", "sales", "--json").body["data"]
    assert isinstance(data, list)
    assert [rollout["id"] for rollout in data] == ["r2"]
    assert run("status", "r1", "--json").body["route"] == "support"
    assert "r1" in run("status", "r1").err


@pytest.mark.usefixtures("_gateway")
def test_promote_and_rollback_take_the_rollout_under_way(run: Run) -> None:
    run("start", "int8", "--route", "support")

    promoted = run("promote", "--json")
    undone = run("rollback", "--reason", "customers complain", "--json")

    assert (promoted.body["state"], promoted.body["canary_share"]) == ("canary", 0.05)
    assert undone.body["state"] == "rolled_back"
    history = run("history").err
    assert "customers complain" in history
    assert "operator" in history


@pytest.mark.usefixtures("_gateway")
def test_which_rollout_is_meant_must_be_clear(run: Run) -> None:
    assert "rollouts under way: none; name one by its id" in run("promote").err
    run("start", "int8", "--route", "support")
    run("start", "int8", "--route", "sales")

    unclear = run("rollback")

    assert unclear.code == 1
    assert "r1 (support), r2 (sales); name one by its id" in unclear.err
    assert run("rollback", "--route", "sales", "--json").body["id"] == "r2"


@pytest.mark.usefixtures("_gateway")
def test_a_refusal_is_passed_on_in_the_gateways_words(run: Run) -> None:
    run("start", "int8", "--route", "support")

    again = run("start", "int8", "--route", "support")
    unknown = run("status", "r9")

    assert (again.code, unknown.code) == (1, 1)
    assert "retort: route 'support' already has a rollout under way; wait for" in again.err
    assert unknown.err.startswith("retort: there is no rollout 'r9'")
    assert "there is no rollout yet" in run("history", "--route", "sales").err


@pytest.mark.usefixtures("_gateway")
def test_the_key_comes_from_the_environment_before_the_file(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETORT_ADMIN_KEY", "wrong")
    refused = run("status")
    Path("run/admin.key").unlink()
    monkeypatch.setenv("RETORT_ADMIN_KEY", KEY)
    allowed = run("status", "--json")

    assert refused.code == 1
    assert refused.err == "retort: the admin key is wrong\n"
    assert allowed.code == 0


@pytest.mark.usefixtures("_gateway")
def test_a_missing_key_says_where_it_should_be(run: Run) -> None:
    Path("run/admin.key").unlink()

    result = run("status")

    assert result.code == 1
    assert "run/admin.key (No such file or directory)" in result.err
    assert "set RETORT_ADMIN_KEY" in result.err


@pytest.mark.usefixtures("_gateway")
def test_the_key_is_never_handed_to_a_proxy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    assert run("status", "--json").code == 0


def test_a_gateway_that_is_not_running_is_said_to_be_so(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    write_config(tmp_path, f"127.0.0.1:{port}")

    result = run("status")

    assert result.code == 1
    assert result.err.startswith(f"retort: no gateway answers on http://127.0.0.1:{port}")
    assert "retort serve" in result.err
    assert result.err.count("\n") == 1


def test_another_server_on_that_port_is_told_from_a_gateway(run: Run, tmp_path: Path) -> None:
    with serving(FastAPI()) as address:
        write_config(tmp_path, address)

        result = run("status")

    assert result.code == 1
    assert "answered 404 with something that is not the admin API's" in result.err


def test_a_gateway_that_stays_silent_is_not_waited_for_forever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()

        with (
            connect(f"{host}:{port}", KEY) as client,
            pytest.raises(UpstreamTimeoutError, match="did not answer within 0 s"),
        ):
            client.start("support", "int8", seconds=0.05)


def test_a_gateway_that_breaks_off_is_said_to_have_done_so() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ThreadPoolExecutor(1) as pool,
        connect("{}:{}".format(*listener.getsockname()), KEY) as client,
    ):
        pool.submit(hang_up, listener)

        with pytest.raises(NotReadyError, match="broke off"):
            client.rollouts()


@pytest.mark.usefixtures("_gateway")
def test_an_unknown_route_names_the_known_ones(run: Run) -> None:
    result = run("start", "int8", "--route", "help-desk")

    assert result.code == 2
    assert "retort.toml has no route 'help-desk'; known: sales, support" in result.err


@pytest.mark.parametrize(
    "words",
    [("status", "-c", "missing.toml"), ("start", "int8"), ("status", "--nonsense"), ("unknown",)],
)
def test_a_mistake_in_usage_or_configuration_exits_2(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words)

    assert result.code == 2
    assert "Traceback" not in result.err
