"""The gateways to compare, each started on a core of its own with its own key check on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from capture.engine import free_port
from tests.bench.gateways.load import Target
from tests.support.retort import RETORT

LITELLM = "litellm[proxy]==1.106.2"
PORTKEY = "@portkey-ai/gateway@1.15.2"
KEY = "sk-bench-8f3a5c1d7e9b2460a1c3e5f7092b4d6f"
START_SECONDS = 120.0
TASKSET = shutil.which("taskset") or "taskset"


@dataclass(frozen=True, slots=True)
class Arm:
    """A running gateway, or the engine itself."""

    name: str
    target: Target
    process: psutil.Process

    def rss_mb(self) -> dict[str, float]:
        """Resident memory in MB: of what serves, and of the committer beside it, if any."""
        found = {"serving": 0.0, "committer": 0.0}
        for process in (self.process, *self.process.children(recursive=True)):
            part = "committer" if "commit" in process.cmdline() else "serving"
            found[part] += process.memory_info().rss / 1e6
        return found


@contextmanager
def mock_engine(home: Path, cores: str) -> Iterator[Arm]:
    """The mock on its core."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.gateways.mock_engine", str(port)]
    with running("direct", command, Target(f"http://127.0.0.1:{port}"), home, cores) as arm:
        yield arm


@contextmanager
def retort(engine: str, home: Path, cores: str, *flags: str) -> Iterator[Arm]:
    """Retort with everything on: keys, quotas, capture, metrics, rows that survive us."""
    port = free_port()
    config = home / "retort.toml"
    config.write_text(
        f"""\
[gateway]
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:{free_port()}"
auth = "keys"
[gateway.tenants.bench]
tokens_per_minute = 1_000_000_000
[gateway.routes.support]
url = "{engine}"
""",
        encoding="utf-8",
    )
    limits = ("--requests-per-minute", "100000000", "--token-budget", "1000000000000")
    create = [*RETORT, "key", "create", "--tenant", "bench", *limits, "-c", str(config)]
    key = subprocess.run(create, check=True, capture_output=True, text=True).stdout.strip()
    target = Target(f"http://127.0.0.1:{port}", {"authorization": f"Bearer {key}"})
    serve = [*RETORT, "serve", "-c", str(config), *flags]
    with running("retort", serve, target, home, cores) as arm:
        yield arm


@contextmanager
def bare(engine: str, home: Path, cores: str) -> Iterator[Arm]:
    """The libraries that Retort's hot path is made of, and nothing else."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.gateways.bare", str(port), engine]
    with running("bare", command, Target(f"http://127.0.0.1:{port}"), home, cores) as arm:
        yield arm


@contextmanager
def litellm(engine: str, home: Path, cores: str, tools: Path) -> Iterator[Arm]:
    """LiteLLM's proxy with one worker and its master key."""
    folder = tools / "litellm"
    if not (folder / "bin/litellm").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        uv = Path(sys.executable).with_name("uv")
        where = ["--python", str(folder / "bin/python")]
        subprocess.run([uv, "pip", "install", "--quiet", *where, LITELLM], check=True)
    port = free_port()
    config = home / "litellm.yaml"
    config.write_text(
        f"""\
model_list:
  - model_name: support
    litellm_params: {{model: openai/support, api_base: "{engine}/v1", api_key: none}}
general_settings: {{master_key: {KEY}}}
litellm_settings: {{telemetry: false}}
""",
        encoding="utf-8",
    )
    command = [str(folder / "bin/litellm"), "--config", str(config), "--port", str(port)]
    target = Target(f"http://127.0.0.1:{port}", {"authorization": f"Bearer {KEY}"})
    with running("litellm", [*command, "--host", "127.0.0.1"], target, home, cores) as arm:
        yield arm


@contextmanager
def portkey(engine: str, home: Path, cores: str, tools: Path) -> Iterator[Arm]:
    """Portkey's gateway, told by headers where the engine is; it has no keys of its own."""
    folder = tools / "portkey"
    script = folder / "node_modules/@portkey-ai/gateway/build/start-server.js"
    if not script.exists():
        folder.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", PORTKEY]
        subprocess.run(install, check=True, cwd=folder)
    port = free_port()
    headers = {
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"{engine}/v1",
        "authorization": "Bearer none",
    }
    command = ["node", str(script), f"--port={port}", "--headless"]
    with running(
        "portkey", command, Target(f"http://127.0.0.1:{port}", headers), home, cores
    ) as arm:
        yield arm


@contextmanager
def running(
    name: str, command: Sequence[str], target: Target, home: Path, cores: str
) -> Iterator[Arm]:
    """A server pinned to some cores, ready to answer.

    Raises:
        RuntimeError: If it ends or does not answer; with the end of its log.
    """
    log = home / f"{name}.log"
    environment = {**os.environ, "NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [TASKSET, "-c", cores, *command],
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(target):
            if process.poll() is not None or time.monotonic() > deadline:
                end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise RuntimeError(f"{name} does not answer:\n{end}")
            time.sleep(0.2)
        yield Arm(name, target, psutil.Process(process.pid))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(target: Target) -> bool:
    """Whether one real request succeeds."""
    body = target.request().partition(b"\r\n\r\n")[2]
    headers = {"content-type": "application/json", **target.headers}
    try:
        url = f"{target.url}/v1/chat/completions"
        return httpx.post(url, content=body, headers=headers, timeout=10).is_success
    except httpx.TransportError:
        return False


Start = Callable[[str, Path, str, Path], AbstractContextManager[Arm]]
PEERS: Mapping[str, Start] = {"litellm": litellm, "portkey": portkey}
