"""One vLLM OpenAI server as a child process: started, proven by a generation, ended with us."""

import json
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from capture.config import CaptureConfig
from capture.errors import EngineError
from capture.host import dtype_args
from capture.process import GuardedProcess, last_lines
from capture.revision import model_revision, tokenizer_hash

SERVER = "vllm.entrypoints.openai.api_server"
QUIET = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
NOT_THE_TAPS = {"log", "spool", "commit_seconds", "retention_days", "redact"}
NO_NUMBER = "Out of range float values"  # what Python's json says of NaN
START_TIMEOUT_SECONDS = 600.0
DRAIN_SECONDS = 5  # an engine that is asked to end finishes what is under way for so long


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to serve and how.

    Attributes:
        model: Folder of a Hugging Face model.
        served_name: Model name that requests ask for.
        log_path: File that receives everything the process prints.
        args: Further flags of vLLM's server.
        env: Environment overrides.
        capture: Loads the tap and tells it where and how much to write; None serves without it.
    """

    model: Path
    served_name: str
    log_path: Path
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    capture: CaptureConfig | None = None

    def command(self, port: int) -> list[str]:
        """The server's command line on one loopback port."""
        name = ("--served-model-name", self.served_name)
        place = ("--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log")
        end = ("--shutdown-timeout", str(DRAIN_SECONDS))
        tap = ("--logits-processors", "capture.tap:LogitTap") if self.capture else ()
        model = ("--model", str(self.model))
        flags = (*model, *name, *place, *end, *tap, *dtype_args(), *self.args)
        return [sys.executable, "-m", SERVER, *flags]

    def environment(self) -> dict[str, str]:
        """Overrides for the process, the tap's settings among them."""
        if not self.capture:
            return {**QUIET, **self.env}
        tap = {
            **self.capture.model_dump(mode="json", exclude=NOT_THE_TAPS),
            "model_revision": model_revision(self.model),
            "tokenizer_hash": tokenizer_hash(self.model),
        }
        tap_env = {"RETORT_SPOOL": str(self.capture.spool), "RETORT_TAP": json.dumps(tap)}
        return {**QUIET, **tap_env, **self.env}


class Engine:
    """A server on one port; ``launch`` it, ``wait_ready``, use ``url``, ``stop``.

    It may be launched again when it has ended. The process group dies with this process, however
    that ends (see ``capture.watchdog``). Safe to use from several threads.
    """

    def __init__(self, spec: EngineSpec, port: int) -> None:
        self.spec = spec
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._process: GuardedProcess | None = None
        self._is_stopped = False
        self._changing = threading.Lock()

    @classmethod
    def start(cls, spec: EngineSpec) -> Self:
        """Launch a server on a free port and return at once.

        Raises:
            EngineError: If the model folder is missing or holds no model.
        """
        engine = cls(spec, free_port())
        engine.launch()
        return engine

    def launch(self) -> None:
        """Start the process, ending what is left of an earlier one, and return at once.

        Raises:
            EngineError: If the model folder holds no model, a file of ours cannot be written, or
                ``stop`` was called.
        """
        spec = self.spec
        if not (spec.model / "config.json").is_file():
            raise EngineError(
                f"{spec.model}: no config.json there; expected a Hugging Face model folder"
            )
        if any(spec.model.glob("*.gguf")) and not any(spec.model.glob("*.safetensors")):
            raise EngineError(
                f"{spec.model}: holds GGUF, which vLLM does not read; serve it with llama.cpp and "
                "give a route its `url` (docs/quantize.md)"
            )
        try:
            command, environment = spec.command(self._port), spec.environment()
            with self._changing:
                if self._is_stopped:
                    raise EngineError(f"engine for {spec.model} has been stopped")
                if self._process is not None:
                    self._process.stop()
                self._process = GuardedProcess.start(
                    command, environment, spec.log_path, 2.0 * DRAIN_SECONDS
                )
        except OSError as error:
            raise EngineError(f"engine for {spec.model} cannot be started: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether the process is alive; says nothing about its health."""
        return self._process is not None and self._process.is_running

    @property
    def pid(self) -> int | None:
        """Of the process whose descendants serve; None before the first launch."""
        return self._process.pid if self._process is not None else None

    def wait_ready(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Return once the server has answered a real generation.

        Raises:
            EngineError: If the process ends, is not ready in time, or computes no numbers; with the
                end of its log.
        """
        deadline = time.monotonic() + timeout_seconds
        with httpx.Client(base_url=self.url, timeout=60.0, trust_env=False) as client:
            while not self._generates(client):
                if not self.is_running:
                    raise EngineError(self.explain("ended before it was ready"))
                if time.monotonic() > deadline:
                    raise EngineError(self.explain(f"not ready after {timeout_seconds:.0f} s"))
                time.sleep(0.2)

    def _generates(self, client: httpx.Client) -> bool:
        """Whether one token can be generated now.

        Raises:
            EngineError: If it comes from logits of NaN: vLLM makes text of them, but no JSON.
        """
        body = {"model": self.spec.served_name, "prompt": "a", "max_tokens": 1}
        try:
            if not client.get("/health").is_success:
                return False
            if not client.post("/v1/completions", json=body).is_success:
                return False
            scored = client.post("/v1/completions", json={**body, "logprobs": 1})
        except httpx.TransportError:
            return False
        if NO_NUMBER in scored.text:
            raise EngineError(self.explain("generates, but its logits are no numbers"))
        return True

    def explain(self, what: str) -> str:
        """A message with the last lines of the engine's log."""
        tail = last_lines(self.spec.log_path)
        return f"engine for {self.spec.model} {what}; end of {self.spec.log_path}:\n  {tail}"

    def halt(self) -> None:
        """End the process group; ``launch`` may start it again."""
        with self._changing:
            if self._process is not None:
                self._process.stop()

    def stop(self) -> None:
        """End the process group for good; safe to call twice."""
        with self._changing:
            self._is_stopped = True
        self.halt()


def free_port() -> int:
    """Return a loopback TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
