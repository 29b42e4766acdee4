"""The ``retort`` command: exit codes, and one line for whatever goes wrong."""

import socket
import subprocess
from pathlib import Path

import pytest

from capture.engine import free_port
from tests.support.retort import RETORT

CONFIG = """
[gateway]
{gateway}
[gateway.routes.support]
{route}
"""
URL = 'url = "http://127.0.0.1:9"'


def serve(folder: Path, gateway: str, route: str) -> "subprocess.CompletedProcess[str]":
    path = folder / "retort.toml"
    listening = f'listen = "127.0.0.1:{free_port()}"\n' if "listen" not in gateway else ""
    table = f'{listening}admin_listen = "127.0.0.1:{free_port()}"\n{gateway}'
    path.write_text(CONFIG.format(gateway=table, route=route))
    command = [*RETORT, "serve", "-c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("gateway", "route", "code", "message"),
    [
        ("", 'model = "nowhere"', 2, "no config.json there"),
        ('run_dir = "retort.toml"', URL, 2, "[gateway].run_dir is"),
        ('state_url = "nonsense"', URL, 2, "see state_url"),
        ('run_dir = "taken"', URL, 1, "Is a directory"),
        ('run_dir = "empty"', URL, 2, "admin.key: empty; remove it"),
    ],
)
def test_serve_explains_what_is_wrong_in_one_line(
    tmp_path: Path, gateway: str, route: str, code: int, message: str
) -> None:
    (tmp_path / "taken" / "admin.key").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "admin.key").touch()

    done = serve(tmp_path, gateway, route)

    assert done.returncode == code
    assert done.stderr.startswith("retort: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        done = serve(tmp_path, f'listen = "{address}"', URL)

    assert done.returncode == 1
    assert done.stderr == (
        f"retort: cannot listen on {address}: Address already in use; choose another address\n"
    )
