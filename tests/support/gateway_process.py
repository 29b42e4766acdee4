"""``retort serve`` as a process before a fake vLLM, to be signalled, crashed and looked into."""

import json
import os
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from capture.engine import free_port
from tests.support import fake_vllm
from tests.support.killable import wait_for
from tests.support.retort import RETORT, address, is_ready


@dataclass
class Gateway:
    """A running gateway of our own."""

    folder: Path
    process: "subprocess.Popen[bytes]"

    @property
    def config(self) -> Path:
        return self.folder / "retort.toml"

    @property
    def url(self) -> str:
        return address(self.config)

    @property
    def hold(self) -> Path:
        return self.folder / "hold"

    @property
    def log(self) -> str:
        return (self.folder / "serve.log").read_text()

    def engines(self, deployment: str = "support-teacher") -> list[int]:
        """An engine's processes so far, each the leader of its group."""
        log = self.folder / "run" / "engines" / f"{deployment}.log"
        said = log.read_text().splitlines() if log.exists() else []
        return [int(line.split()[1]) for line in said if line.startswith("process ")]

    def operator(self) -> httpx.AsyncClient:
        table = tomllib.loads(self.config.read_text())["gateway"]
        key = (self.folder / "run" / "admin.key").read_text()
        return httpx.AsyncClient(
            base_url=f"http://{table['admin_listen']}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=30,
        )

    def press_ctrl_c(self) -> None:
        """Signal the whole group, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_for_log(self, text: str) -> None:
        wait_for(lambda: text in self.log)

    def wait_ready(self) -> None:
        wait_for(lambda: is_ready(self.config))


def configure(
    folder: Path,
    *,
    gateway: str = "",
    route: str = "",
    capture: str = "",
    gpu: Path | None = None,
    url: str | None = None,
) -> Path:
    """Write a configuration with one route, of an engine of its own unless there is a ``url``."""
    path = folder / "retort.toml"
    variables = fake_vllm.installed(folder) | ({"GPU": str(gpu)} if gpu else {})
    env = "\n".join(f"{key} = {json.dumps(value)}" for key, value in variables.items())
    source = f'model = "{fake_vllm.model(folder / "model")}"' if url is None else f'url = "{url}"'
    path.write_text(
        f"""\
[gateway]
listen = "127.0.0.1:{free_port()}"
admin_listen = "127.0.0.1:{free_port()}"
{gateway}
[gateway.routes.support]
{source}
{route}
[gateway.routes.support.engine.env]
{env}
[capture]
segment_seconds = 0.1
commit_seconds = 0.1
{capture}
""",
        encoding="utf-8",
    )
    return path


@contextmanager
def started(config: Path, *flags: str) -> Iterator[Gateway]:
    """Start a gateway in a process group of its own and see that nothing of it is left."""
    with (config.parent / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [*RETORT, "serve", "-c", str(config), *flags], stderr=log, start_new_session=True
        )
    gateway = Gateway(config.parent, process)
    try:
        yield gateway
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, gateway.log
        assert processes(config.parent) == []
        assert "Traceback" not in gateway.log
    finally:
        process.kill()
        process.wait()


def processes(folder: Path) -> list[str]:
    """Command lines that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:  # it has just ended
            continue
        if str(folder) in line:
            found.append(line)
    return found
