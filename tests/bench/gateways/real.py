"""A real vLLM, asked straight and through Retort by vLLM's own load."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from capture.config import CaptureConfig
from capture.engine import Engine, EngineSpec
from tests.bench.gateways.arms import retort
from tests.bench.models import demo_teacher

ENGINE_ARGS = ("--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "64")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def vllm_ratio(demo: Path, console: Console) -> float:
    """Tokens per second through Retort over those without it: the median of the rounds' ratios.

    The engine has the tap in both cases; only requests through Retort are captured.
    """
    console.rule("[bold]vllm bench serve, 64 streams, straight and through Retort", align="left")
    model = demo_teacher(demo)
    with tempfile.TemporaryDirectory(prefix="retort-bench-") as folder:
        home = Path(folder)
        capture = CaptureConfig(log=home / "log", spool=home / "spool")
        spec = EngineSpec(model, "support", home / "engine.log", ENGINE_ARGS, ONE_THREAD, capture)
        out = home / "load.json"
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        with Engine.start(spec) as engine:
            engine.wait_ready()
            with retort(engine.url, home, cores) as ours, (home / "load.log").open("wb") as log:
                urls = [engine.url, ours.target.url]
                load = [sys.executable, "-m", "tests.bench.gateways.vllm_load"]
                key = ours.target.headers["authorization"].removeprefix("Bearer ")
                command = [*load, str(model), str(out), *urls, "--key", key]
                if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
                    end = (home / "load.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"vLLM's load failed:\n{end}")
        straight, through = json.loads(out.read_text()).values()
    console.print(f"tokens/s straight {straight}, through Retort {through}")
    return float(statistics.median(b / a for a, b in zip(straight, through, strict=True)))
