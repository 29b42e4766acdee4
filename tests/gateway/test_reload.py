from pathlib import Path

import pytest

from gateway.reload import Settings, take

BASE = """
[gateway.routes.support]
url = "http://127.0.0.1:1"
capture = "{capture}"
{route}
{gateway}
[capture]
{table}
"""


def settings(
    folder: Path, *, capture: str = "full", route: str = "", table: str = "", gateway: str = ""
) -> Settings:
    path = folder / "retort.toml"
    text = BASE.format(capture=capture, route=route, table=table, gateway=gateway)
    path.write_text(text, encoding="utf-8")
    return Settings.read(path)


def test_limits_redaction_promises_and_rollouts_change_at_once(tmp_path: Path) -> None:
    started = settings(tmp_path)
    route = 'promise = "strict"\nrollout.steps = [0.5]\nguards.agreement_min = 0.5'
    gateway = "[gateway.tenants.acme]\ntoken_budget = 5\n[gateway.bounds]\nmax_stop = 1"
    read = settings(tmp_path, route=route, table='redact.enabled = ["email"]', gateway=gateway)

    taken = take(started, read)

    assert taken == read
    assert taken.differences(started) == [
        "[gateway].bounds.max_stop",
        "[gateway].routes.support.guards.agreement_min",
        "[gateway].routes.support.promise",
        "[gateway].routes.support.rollout.steps",
        "[gateway].tenants.acme",
        "[capture].redact.enabled",
    ]


@pytest.mark.parametrize(
    ("before", "after", "is_taken"),
    [
        ("full", "text", True),
        ("full", "off", True),
        ("text", "off", True),
        ("wire", "off", True),
        ("text", "full", False),
        ("off", "wire", False),
        ("wire", "full", False),
        ("full", "wire", False),
    ],
)
def test_a_route_captures_less_at_once_and_more_only_after_a_restart(
    tmp_path: Path, before: str, after: str, is_taken: bool
) -> None:
    started, read = settings(tmp_path, capture=before), settings(tmp_path, capture=after)

    taken = take(started, read)

    waiting = [] if is_taken else ["[gateway].routes.support.capture"]
    assert taken.differences(read) == waiting


def test_what_it_was_started_with_can_come_back(tmp_path: Path) -> None:
    started = settings(tmp_path)

    assert take(started, settings(tmp_path, capture="full")) == started


def test_routes_listeners_and_the_spool_need_a_restart(tmp_path: Path) -> None:
    started = settings(tmp_path)
    more = '[gateway.routes.sales]\nurl = "http://127.0.0.1:2"\n[gateway]\nlisten = "127.0.0.1:1"'
    read = settings(tmp_path, route=more, table='spool = "elsewhere"')

    taken = take(started, read)

    assert taken == started
    assert taken.differences(read) == [
        "[gateway].listen",
        "[gateway].routes.sales",
        "[capture].spool",
    ]
