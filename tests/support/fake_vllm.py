"""A fake vLLM: found instead of the real one by whoever starts ``-m vllm.entrypoints...``.

It speaks the same command line and API. While the file named by ``HOLD`` exists it listens but
does not generate; with the tap's environment it spools a row for every tagged request. A model
folder may say how its engine behaves: ``BEHAVIOUR`` in it holds fields of ``FakeEngine``. All that
name one file as their ``GPU`` share one that has room for one model that is awake.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from capture.rows import encode_logits
from capture.writer import Spool
from gateway.listener import bound, listening
from tests.support.engine_process import LIMITS, TappedEngine
from tests.support.fake_engine import FakeEngine
from tests.support.fake_sleep import Gpu, Sleep

BEHAVIOUR = "fake.json"
ROOT = Path(__file__).parents[2]
SHIM = "from tests.support.fake_vllm import main\n\nmain()\n"


def installed(folder: Path) -> dict[str, str]:
    """Put the fake where Python finds it first; gives the environment that does so."""
    package = folder / "fake" / "vllm"
    server = package / "entrypoints" / "openai" / "api_server.py"
    server.parent.mkdir(parents=True, exist_ok=True)
    for inside in (package, package / "entrypoints", server.parent):
        (inside / "__init__.py").touch()
    server.write_text(SHIM)
    return {"PYTHONPATH": f"{package.parent}:{ROOT}", "HOLD": str(folder / "hold")}


def model(folder: Path, config: Mapping[str, object] = {}, **behaviour: object) -> Path:
    """A folder that passes for a model, whose engine behaves in some way; ``exits``: not at all."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / BEHAVIOUR).write_text(json.dumps(behaviour))
    return folder


async def run(address: str, behaviour: dict[str, Any], sleep: Sleep) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as stack:
        engine = FakeEngine()
        if "RETORT_SPOOL" in os.environ:
            spool = Spool(Path(os.environ["RETORT_SPOOL"]), "logits", encode_logits, limits=LIMITS)
            stack.push_async_callback(asyncio.to_thread, spool.close)
            engine = TappedEngine(spool)
            engine.tokenizer_hash = json.loads(os.environ["RETORT_TAP"])["tokenizer_hash"]
        engine.hold = Path(os.environ["HOLD"])
        engine.sleep = sleep
        engine.spells = set(behaviour.pop("spells", ()))
        for name, value in behaviour.items():
            setattr(engine, name, value)
        await stack.enter_async_context(listening(engine.app, bound(address), grace_seconds=1))
        await stop.wait()


def main() -> None:
    """Understand as much of the command line as there is to it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--enable-sleep-mode", action="store_true")
    known, _ = parser.parse_known_args()
    behaviour = json.loads((known.model / BEHAVIOUR).read_text())
    sys.stdout.write(f"process {os.getpid()}\n")
    sys.stdout.flush()
    gpu = Gpu(Path(os.environ["GPU"])) if "GPU" in os.environ else None
    if behaviour.get("exits") or (gpu is not None and not gpu.take()):
        sys.exit("out of memory")
    has_endpoints = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
    sleep = Sleep(has_endpoints=has_endpoints, has_mode=known.enable_sleep_mode, gpu=gpu)
    asyncio.run(run(f"127.0.0.1:{known.port}", behaviour, sleep))
