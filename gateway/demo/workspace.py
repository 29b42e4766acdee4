"""Where one demo keeps what it makes, and the configuration files it hands to each command."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from capture.engine import free_port
from capture.errors import ConfigError
from capture.host import SMALL_ENGINE_ARGS, SMALL_ENGINE_ENV

ROUTE = "assistant"
MAX_MODEL_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Workspace:
    """The demo's folder.

    Attributes:
        home: Everything below is inside it, the cache of the teacher included.
        teacher: Folder of the teacher's model.
        port: Port of the gateway.
        admin_port: Port of its operators' listener.
    """

    home: Path
    teacher: Path
    port: int
    admin_port: int

    @classmethod
    def create(cls, home: Path, teacher: Path) -> "Workspace":
        """Remove what an earlier demo left (not the cached teacher) and choose free ports."""
        home, teacher = home.resolve(), teacher.resolve()
        home.mkdir(parents=True, exist_ok=True)
        for name in ("log", "spool", "run", "runs", "bench"):
            shutil.rmtree(home / name, ignore_errors=True)
        (home / "runs").mkdir()
        return cls(home, teacher, free_port(), free_port())

    @property
    def config(self) -> Path:
        """The gateway's configuration file."""
        return self.home / "retort.toml"

    @property
    def url(self) -> str:
        """The gateway's address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        """The operators' address."""
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def engine_args(self) -> tuple[str, ...]:
        """Flags that make a small engine start quickly.

        Raises:
            ConfigError: If the teacher's folder has no readable configuration.
        """
        try:
            model = json.loads((self.teacher / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.teacher}: no model there; expected a Hugging Face folder with config.json"
            ) from error
        length = min(model.get("max_position_embeddings", MAX_MODEL_TOKENS), MAX_MODEL_TOKENS)
        return (*SMALL_ENGINE_ARGS, "--max-model-len", str(length), "--max-num-seqs", "32")

    def write_config(self, min_agreement: float) -> None:
        """Write ``retort.toml``: one route, the teacher behind it, a rollout of one canary step."""
        env = "\n".join(f"{key} = {json.dumps(value)}" for key, value in SMALL_ENGINE_ENV.items())
        self.config.write_text(
            f"""\
[gateway]
listen = "127.0.0.1:{self.port}"
admin_listen = "127.0.0.1:{self.admin_port}"
run_dir = "run"

[gateway.routes.{ROUTE}]
model = {json.dumps(str(self.teacher))}

[gateway.routes.{ROUTE}.engine]
args = {json.dumps(list(self.engine_args))}

[gateway.routes.{ROUTE}.engine.env]
{env}

[gateway.routes.{ROUTE}.rollout]
steps = [0.25]

[gateway.routes.{ROUTE}.guards]
agreement_min = {min_agreement}
worst_slice_agreement_min = {min_agreement / 2}

[capture]
log = "log"
spool = "spool"
segment_seconds = 1.0
commit_seconds = 1.0
""",
            encoding="utf-8",
        )

    def write_run(self, name: str, loss: str, where: str, steps: int) -> Path:
        """Write one training run's configuration and return its path."""
        path = self.home / "runs" / f"{name}.toml"
        path.write_text(
            f"""\
[trainer]
log = {json.dumps(str(self.home / "log"))}
where = {json.dumps(where)}
teacher = {json.dumps(str(self.teacher))}
out = {json.dumps(str(self.home / "runs" / name))}
loss = "{loss}"
steps = {steps}
baseline = false
threads = 1
""",
            encoding="utf-8",
        )
        return path
