import asyncio
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from capture.engine import free_port
from capture.spool import CLOSED, SegmentName
from gateway.config import GatewayConfig
from gateway.findings import Finding, backlog, by_size, clock, exposure, judged, secret_files
from tests.support.fake_engine import FakeEngine
from tests.support.fake_sleep import Sleep
from tests.support.retort import RETORT
from tests.support.serving import served


def config(folder: Path, url: str, more: str = "") -> Path:
    path = folder / "retort.toml"
    path.write_text(
        f"""\
[gateway]
listen = "127.0.0.1:{free_port()}"
admin_listen = "127.0.0.1:{free_port()}"
{more}
[gateway.routes.support]
url = "{url}"
"""
    )
    return path


async def examined(path: Path) -> tuple[int, dict[str, dict[str, str]], str]:
    """Exit code, findings by what they are of, and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(*RETORT, "doctor", "-c", str(path), "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    findings = json.loads(out) if out else []
    return process.returncode or 0, {found["what"]: found for found in findings}, err.decode()


async def test_a_healthy_installation_has_nothing_ill(tmp_path: Path) -> None:
    async with served(FakeEngine().app) as url:
        code, found, err = await examined(config(tmp_path, url))

    assert (code, err) == (0, "")
    assert found[f"engine {url}"]["state"] == "well"
    assert "token in" in found[f"engine {url}"]["said"]
    assert {"configuration", "spool's room", "spool's disk", "log", "committer"} <= found.keys()
    assert os.listdir(tmp_path) == ["retort.toml"]  # noqa: PTH208


async def test_an_engine_that_is_not_there_is_ill(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, found, err = await examined(config(tmp_path, url))

    assert code == 1
    assert found[f"engine {url}"]["state"] == "ill"
    assert "start it" in found[f"engine {url}"]["advice"]
    assert f"need attention: engine {url}" in err


async def test_an_engine_that_sleeps_is_told_apart_from_an_ill_one(tmp_path: Path) -> None:
    asleep = Sleep(has_endpoints=True, has_mode=True)
    asleep.awake.clear()
    async with served(FakeEngine(sleep=asleep).app) as url:
        code, found, _ = await examined(config(tmp_path, url))

    assert code == 0
    assert found[f"engine {url}"]["state"] == "doubtful"
    assert "sleeps" in found[f"engine {url}"]["said"]


@pytest.mark.parametrize("file", [None, b"something else"])
async def test_what_prompts_are_weighed_with_must_be_there(
    tmp_path: Path, file: bytes | None
) -> None:
    training = tmp_path / "training.npz"
    if file is not None:
        training.write_bytes(file)
    async with served(FakeEngine().app) as url:
        path = config(tmp_path, url)
        cascade = 'cascade = { route = "teacher", distance = 0.5, training = "training.npz" }'
        path.write_text(f'{path.read_text()}{cascade}\n[gateway.routes.teacher]\nurl = "{url}"\n')
        code, found, _ = await examined(path)

    assert code == 1
    assert found["training of a cascade"]["state"] == "ill"
    assert str(training) in found["training of a cascade"]["said"]


async def test_an_address_that_somebody_else_has_is_ill(tmp_path: Path) -> None:
    engine = FakeEngine()
    async with served(engine.app) as url:
        path = config(tmp_path, url)
        text = path.read_text()
        listen = next(line for line in text.splitlines() if line.startswith("listen"))
        path.write_text(text.replace(listen, f'listen = "{url.removeprefix("http://")}"'))
        code, found, _ = await examined(path)

    assert code == 1
    assert "somebody else" in found["gateway"]["said"]


async def test_a_file_that_cannot_be_read_is_said_and_nothing_else(tmp_path: Path) -> None:
    path = config(tmp_path, "http://127.0.0.1:1", more="no_such_key = 1")
    code, found, err = await examined(path)

    assert (code, found) == (2, {})
    assert "no_such_key" in err


def states(findings: "list[Finding]") -> list[str]:
    return [finding.state for finding in findings]


def test_a_listener_that_answers_everybody_is_doubtful() -> None:
    routes = {"a": {"url": "http://127.0.0.1:9"}}
    given = {"listen": "0.0.0.0:80", "admin_listen": "[::]:81", "auth": "none", "routes": routes}
    open_to_all = GatewayConfig.model_validate(given)
    closed = GatewayConfig.model_validate({**given, "auth": "keys", "admin_listen": "[::1]:81"})

    assert states(list(exposure(open_to_all))) == ["doubtful", "doubtful"]
    assert states(list(exposure(closed))) == ["well", "well"]


def test_a_secret_that_others_can_read_is_doubtful(tmp_path: Path) -> None:
    (tmp_path / "admin.key").touch(mode=0o600)
    assert list(secret_files(tmp_path)) == []
    (tmp_path / "admin.key").chmod(0o644)

    (finding,) = secret_files(tmp_path)
    assert finding.advice == f"chmod 600 {tmp_path / 'admin.key'}"


@pytest.mark.parametrize(("gib", "state"), [(0.1, "ill"), (1, "doubtful"), (100, "well")])
def test_room_on_the_disk(gib: float, state: str) -> None:
    assert by_size(Path("spool"), int(gib * 2**30)).state == state


@pytest.mark.parametrize(("skew", "state"), [(-60, "doubtful"), (0.5, "well"), (8, "doubtful")])
def test_clocks(skew: float, state: str) -> None:
    assert clock("x", skew).state == state


@pytest.mark.parametrize(
    ("version", "state"),
    [("0.31.2", "ill"), ("0.32.0", "well"), ("0.32.0rc1", "ill"), ("1.0", "well")],
)
def test_versions_with_known_holes(version: str, state: str) -> None:
    assert judged("vllm", version, "0.32.0", "a hole").state == state


def test_a_version_that_cannot_be_compared_is_doubtful() -> None:
    assert judged("vllm", "nightly", "0.32.0", "a hole").state == "doubtful"


def test_rows_that_nobody_commits_are_ill(tmp_path: Path) -> None:
    assert states(list(backlog(tmp_path))) == ["well"]
    segment = SegmentName("exchanges", "a", 1).path(tmp_path, CLOSED)
    segment.touch()
    an_hour_ago = time.time() - 3600
    os.utime(segment, (an_hour_ago, an_hour_ago))

    (finding,) = backlog(tmp_path)
    assert finding.state == "ill"
    assert "3600 s" in finding.said
