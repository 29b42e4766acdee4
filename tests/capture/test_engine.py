import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capture.config import CaptureConfig
from capture.engine import Engine, EngineSpec
from capture.errors import EngineError
from capture.process import GuardedProcess, guarded, last_lines
from tests.support import fake_vllm

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def wait_until_dead(pid: int) -> None:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} still runs")


def children(pid: int) -> list[int]:
    listed = subprocess.run(
        ["/bin/ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in listed.stdout.split()]


def wait_for_line(path: Path) -> None:
    for _ in range(400):
        if path.exists() and path.read_text():
            return
        time.sleep(0.05)
    pytest.fail("the command printed nothing")


def test_a_guarded_command_ends_when_it_is_stopped(tmp_path: Path) -> None:
    process = GuardedProcess.start(SLEEPER, {}, tmp_path / "log")
    wait_for_line(tmp_path / "log")
    assert process.is_running

    process.stop()

    assert not process.is_running


def test_a_guarded_command_dies_with_a_killed_parent(tmp_path: Path) -> None:
    parent_code = (
        "import sys, time, pathlib; from capture.process import GuardedProcess;"
        f"p = GuardedProcess.start({SLEEPER!r}, {{}}, pathlib.Path({str(tmp_path / 'log')!r}));"
        "print(p._process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    watchdog = int(parent.stdout.readline())
    wait_for_line(tmp_path / "log")
    (command,) = children(watchdog)

    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    wait_until_dead(command)


def test_what_a_killed_command_leaves_lying_is_cleared_away(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal;"
        "left = pathlib.Path(os.environ['VLLM_RPC_BASE_PATH'], 'socket'); left.touch();"
        "print(left, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = GuardedProcess.start([sys.executable, "-c", code], {}, tmp_path / "log")

    wait_for_line(tmp_path / "log")
    process.stop()

    left = Path((tmp_path / "log").read_text().strip())
    assert left.name == "socket"
    assert not left.parent.exists()


def test_a_command_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('up', flush=True); time.sleep(600)"
    )
    process = GuardedProcess.start(
        [sys.executable, "-c", stubborn], {}, tmp_path / "log", grace_seconds=0.2
    )
    wait_for_line(tmp_path / "log")

    process.stop()

    assert not process.is_running


def test_the_exit_code_and_environment_pass_through() -> None:
    code = "import os, sys; sys.exit(int(os.environ['CODE']))"
    line = guarded([sys.executable, "-c", code], {"CODE": "7"})

    with subprocess.Popen(line, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        errors = process.stderr.read()

    assert (process.returncode, errors) == (7, b"")


def test_the_end_of_a_log_is_read_without_the_rest_of_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))

    assert last_lines(log).split("\n  ") == [f"line {n}" for n in range(99_985, 100_000)]
    assert last_lines(tmp_path / "none") == "(No such file or directory)"


def test_a_folder_without_a_model_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no config\.json there"):
        Engine.start(EngineSpec(tmp_path, "m", tmp_path / "log"))


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_a_model_that_does_not_load_is_explained_by_its_log(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-architecture"}')
    spec = EngineSpec(tmp_path, "m", tmp_path / "engine.log")

    with (
        Engine.start(spec) as engine,
        pytest.raises(EngineError, match="ended before it was ready") as caught,
    ):
        engine.wait_ready()

    assert str(spec.log_path) in str(caught.value)
    assert "no-such-architecture" in str(caught.value)


def test_the_tap_is_loaded_and_told_what_it_serves(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    capture = CaptureConfig(spool=tmp_path / "spool", k_max=7)
    tapped = EngineSpec(tmp_path, "m", tmp_path / "log", capture=capture)
    plain = EngineSpec(tmp_path, "m", tmp_path / "log")

    settings = json.loads(tapped.environment()["RETORT_TAP"])

    assert "capture.tap:LogitTap" in tapped.command(1)
    assert "capture.tap:LogitTap" not in plain.command(1)
    assert settings["k_max"] == 7
    assert len(settings["model_revision"]) == 16
    assert "RETORT_SPOOL" not in plain.environment()


def test_an_engine_whose_logits_are_no_numbers_is_not_ready(tmp_path: Path) -> None:
    env = fake_vllm.installed(tmp_path)
    model = fake_vllm.model(tmp_path / "model", is_nan=True)

    with (
        Engine.start(EngineSpec(model, "m", tmp_path / "log", env=env)) as engine,
        pytest.raises(EngineError, match="its logits are no numbers"),
    ):
        engine.wait_ready(30)
