"""The demo's steps beside serving: prompts and teacher, traffic, commit, training, evaluation."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from capture.engine import EngineSpec
from capture.errors import ConfigError
from capture.host import SMALL_ENGINE_ENV
from capture.revision import model_revision
from gateway.demo.prompts import Prompt
from gateway.demo.report import Model
from gateway.demo.services import command, command_json, engine_running
from gateway.demo.traffic import Client, Outcome, Round, ask_all, same_answer, send
from gateway.demo.weights import count_parameters, size_bytes
from gateway.demo.workspace import ROUTE, Workspace
from gateway.errors import DemoError

COMMIT_POLLS = 120
console = Console(stderr=True)


def progress() -> Progress:
    """A progress bar on standard error."""
    return Progress(
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def find_model(name: str) -> Path:
    """A folder as it is, else a hub id's local copy, downloaded if it can be.

    Raises:
        ConfigError: If there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # noqa: PLC0415  slow, and only for a hub id

    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors
        raise ConfigError(f"--teacher {name}: neither a folder nor to be had: {error}") from error


async def harvest(work: Workspace, prompts: Iterator[Prompt], total: int) -> list[Outcome]:
    """Send the traffic that the log is made of, half of it streaming.

    Raises:
        DemoError: If a request fails.
    """
    client = Client(work.url, ROUTE)
    outcomes: list[Outcome] = []
    with progress() as bar:
        task = bar.add_task("requests", total=total)

        def record(outcome: Outcome) -> None:
            outcomes.append(outcome)
            bar.advance(task)

        await send(client, prompts, stop=lambda sent: sent >= total, on_outcome=record)
    await client.close()
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    if failures:
        raise DemoError(f"{len(failures)} of {total} requests failed; the first: {failures[0]}")
    return outcomes


async def committed(work: Workspace) -> dict[str, object]:
    """Wait until every row of the traffic is in the log, and return what ``log verify`` says.

    Raises:
        DemoError: If that does not happen.
    """
    config = ["-c", str(work.config)]
    for _ in range(COMMIT_POLLS):
        verified = await command_json(["log", "verify", *config])
        if verified["in_flight"] == 0:
            return verified
        await asyncio.sleep(0.5)
    raise DemoError("rows are still on their way to the log; see run/committer.log")


async def distill(work: Workspace, steps: int) -> dict[str, dict[str, object]]:
    """Train the student and the behaviour-cloned baseline side by side, a thread each.

    Returns:
        Each run's ``metrics.json`` by name.
    """
    where = f"role = 'incumbent' and model_revision = '{model_revision(work.teacher)}'"
    runs = {"student": "forward_kl", "student_bc": "behaviour_cloning"}
    configs = {name: work.write_run(name, loss, where, steps) for name, loss in runs.items()}
    quiet = work.home / "runs" / "student_bc.log"
    async with asyncio.TaskGroup() as tasks:
        for name, config in configs.items():
            log = quiet if name == "student_bc" else None
            tasks.create_task(command(["distill", "-c", str(config)], log=log))
    return {
        name: json.loads((work.home / "runs" / name / "metrics.json").read_text(encoding="utf-8"))
        for name in runs
    }


@asynccontextmanager
async def engines_of(work: Workspace, folders: Mapping[str, Path]) -> AsyncIterator[dict[str, str]]:
    """Run an engine for each model, to be asked directly; gives their addresses by name."""
    logs = work.home / "run" / "engines"
    async with AsyncExitStack() as stack:
        starting: dict[str, asyncio.Task[str]] = {}
        async with asyncio.TaskGroup() as tasks:
            for name, folder in folders.items():
                log = logs / f"eval-{name}.log"
                spec = EngineSpec(folder, ROUTE, log, work.engine_args, SMALL_ENGINE_ENV)
                running = stack.enter_async_context(engine_running(spec))
                starting[name] = tasks.create_task(running)
        yield {name: url.result() for name, url in starting.items()}


async def ask_test(url: str, test: list[Prompt], name: str) -> Round:
    """Ask one engine every test prompt, after a short warm-up."""
    client = Client(url, ROUTE)
    await ask_all(client, test[:32])
    console.print(f"  {name}: {len(test)} held-out prompts")
    result = await ask_all(client, test)
    await client.close()
    failures = [outcome.failure for outcome in result.outcomes if outcome.failure]
    if failures:
        raise DemoError(f"{name}: {len(failures)} held-out prompts failed: {failures[0]}")
    return result


def describe(folder: Path, measured: Round, teacher: Round) -> Model:
    """Put a model's figures together."""
    texts = {outcome.prompt: outcome.text for outcome in teacher.outcomes}
    same = [same_answer(outcome.text, texts[outcome.prompt]) for outcome in measured.outcomes]
    return Model(
        parameters=count_parameters(folder),
        size_bytes=size_bytes(folder),
        exact_match_common=measured.exact_match("common"),
        exact_match_rare=measured.exact_match("rare"),
        tokens_per_second=measured.tokens_per_second,
        agreement_with_teacher=sum(same) / len(same),
    )


def with_kl(model: Model, metrics: dict[str, object]) -> Model:
    """Add a training run's held-out KL."""
    heldout = metrics["heldout"]
    value = heldout["kl_to_teacher_nats"] if isinstance(heldout, dict) else None
    return replace(model, kl_to_teacher_nats=value)
