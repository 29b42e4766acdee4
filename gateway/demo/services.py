"""The processes a demo runs: the gateway for its whole length, other commands one at a time."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from capture.engine import Engine, EngineSpec, free_port
from capture.errors import EngineError
from capture.process import GuardedProcess, guarded, last_lines
from gateway.demo.workspace import Workspace
from gateway.errors import DemoError

READY_SECONDS = 600.0


@asynccontextmanager
async def gateway_running(work: Workspace) -> AsyncIterator[None]:
    """Run ``retort serve`` until the context ends.

    Raises:
        DemoError: If it ends, or is not ready in time; with the end of its log.
    """
    command = [sys.executable, "-m", "gateway", "serve", "-c", str(work.config)]
    log = work.home / "run" / "gateway.log"
    process = GuardedProcess.start(command, {}, log, grace_seconds=60.0)
    try:
        await _wait_ready(work, process)
        yield
    finally:
        await asyncio.to_thread(process.stop)


async def _wait_ready(work: Workspace, process: GuardedProcess) -> None:
    async with httpx.AsyncClient(base_url=work.url, trust_env=False) as client:
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not await _answers(client):
                    if not process.is_running:
                        raise DemoError(f"the gateway ended:\n  {last_lines(process.log_path)}")
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            tail = last_lines(process.log_path)
            raise DemoError(f"the gateway is not ready:\n  {tail}") from error


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).is_success
    except httpx.TransportError:
        return False


@asynccontextmanager
async def engine_running(spec: EngineSpec) -> AsyncIterator[str]:
    """Run one engine until the context ends; gives its address when it generates."""
    engine = Engine(spec, free_port())
    try:
        await asyncio.to_thread(engine.launch)
        await asyncio.to_thread(engine.wait_ready, READY_SECONDS)
        yield engine.url
    except EngineError as error:
        raise DemoError(str(error)) from error
    finally:
        await asyncio.to_thread(engine.stop)


async def command(words: list[str], *, module: str = "gateway", log: Path | None = None) -> str:
    """Run one of our commands to its end and return what it wrote to standard output.

    Its progress goes to our standard error, or to ``log``. It ends with us, however we end.

    Raises:
        DemoError: If it fails.
    """
    with log.open("ab") if log else contextlib.nullcontext() as stderr:
        process = await asyncio.create_subprocess_exec(
            *guarded([sys.executable, "-m", module, *words], {}),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            output = await process.stdout.read() if process.stdout else b""
            code = await process.wait()
        finally:
            if process.stdin is not None:
                process.stdin.close()
            await process.wait()
    if code:
        where = f"what it said is in {log}" if log else "what it said is above"
        raise DemoError(f"python -m {module} {' '.join(words)} ended with {code}; {where}")
    return output.decode()


async def command_json(words: list[str]) -> dict[str, object]:
    """Run one of our commands with ``--json`` and return its result."""
    result: dict[str, object] = json.loads(await command([*words, "--json"]))
    return result
