"""The steps of the demo, in order; each one a real command or a real process."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from capture.errors import ConfigError
from gateway.demo.prompts import Prompt, load_prompts, popular, split_heldout
from gateway.demo.report import Report, write_report
from gateway.demo.rollouts import Operator
from gateway.demo.services import command, command_json, gateway_running
from gateway.demo.throughput import PAIRS, Comparison, bench_engines, compare_throughput
from gateway.demo.weights import scramble
from gateway.demo.workspace import Workspace

T = TypeVar("T")
HELDOUT_FRACTION = 0.1
SAMPLE = 200
COMMIT_SECONDS = 60.0
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run; see ``retort demo --help``."""

    out: Path
    teacher: str | None
    prompts: Path | None
    test: Path | None
    requests: int
    steps: int
    min_agreement: float
    seed: int


@dataclass(slots=True)
class Demo:
    """One run and what it has measured so far.

    Attributes:
        seconds: Wall time of each step.
    """

    work: Workspace
    plan: Plan
    traffic: list[Prompt]
    test: list[Prompt]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce a step and time it."""
        console.rule(f"[bold]{name}", align="left")
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)


async def run(plan: Plan) -> None:
    """Run the whole loop and write the report.

    Raises:
        DemoError: If a step fails; whatever was started has ended by then.
    """
    started = time.perf_counter()
    demo = await prepare(plan)
    with demo.step("capture on and off"):
        comparison = await measure_capture(demo)
    with demo.step("serve"):
        async with gateway_running(demo.work):
            report = await run_served(demo, comparison)
    report.seconds = {**demo.seconds, "total": round(time.perf_counter() - started, 1)}
    path = write_report(report, demo.work.home)
    console.print(f"report: {path}")


async def prepare(plan: Plan) -> Demo:
    """Get the teacher and its prompts; our own are built once and cached.

    Raises:
        ConfigError: If a file or model is missing, or prompts are given without a teacher.
    """
    cache = plan.out / "cache"
    if (plan.teacher is None) != (plan.prompts is None):
        raise ConfigError("--teacher and --prompts go together: a teacher needs prompts to answer")
    if plan.teacher is None or plan.prompts is None:
        console.rule("[bold]teacher", align="left")
        await command([str(cache), "--seed", str(plan.seed)], module="trainer.support_desk")
        teacher, prompts = cache / "teacher", cache / "prompts.jsonl"
    else:
        teacher, prompts = await asyncio.to_thread(find_model, plan.teacher), plan.prompts
    traffic = load_prompts(prompts)
    beside = plan.test or prompts.with_name("test.jsonl")
    if plan.test or beside.is_file():
        test = load_prompts(beside)
    else:
        traffic, test = split_heldout(traffic, HELDOUT_FRACTION)
    work = await asyncio.to_thread(Workspace.create, plan.out, teacher)
    work.write_config(plan.min_agreement)
    return Demo(work, plan, traffic, test)


def find_model(name: str) -> Path:
    """A folder as it is, else a hub id's local copy, downloaded if it can be.

    Raises:
        ConfigError: If there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # noqa: PLC0415  only for a hub id
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"{name}: neither a folder nor a model of the hub: {error}") from error


async def measure_capture(demo: Demo) -> Comparison:
    """Compare the engine with and without the tap, and score the teacher."""
    async with bench_engines(demo.work) as urls:
        with progress() as bar:
            task = bar.add_task("measurements", total=2 * PAIRS + 3)
            return await compare_throughput(
                urls, demo.test[:SAMPLE], demo.test, lambda: bar.advance(task)
            )


async def run_served(demo: Demo, comparison: Comparison) -> Report:
    """Everything that happens while the gateway serves."""
    work = demo.work
    with demo.step("traffic"):
        outcomes = await harvest(demo)
    with demo.step("commit"):
        verified = await committed(demo)
        stats = await command_json(["log", "stats", "-c", str(work.config)])
    with demo.step("distill"):
        await distill(demo)
    with demo.step("quantize"):
        bundle = work.home / "runs" / "student_int8"
        checkpoint = work.home / "runs" / "student" / "checkpoint"
        words = ["--scheme", "int8", "--out", str(bundle), "-c", str(work.config)]
        await command(["quantize", str(checkpoint), *words])
    operator = Operator(work)
    prompts = popular(demo.traffic, demo.plan.seed + 1)
    with demo.step("rollout"):
        good = await rolled_out(work, operator, bundle, prompts)
    with demo.step("broken rollout"):
        broken = work.home / "runs" / "broken"
        await asyncio.to_thread(scramble, checkpoint, broken, demo.plan.seed)
        await asyncio.to_thread(publish_broken, broken)
        bad = await rolled_out(work, operator, broken, prompts)
    await operator.close()
    with demo.step("evaluate"):
        models = await evaluate(demo, comparison)
    return Report(
        plan=demo.plan.__class__.__name__,
        outcomes=tuple(outcomes),
        verified=verified,
        stats=stats,
        comparison=comparison,
        models=models,
        good=good,
        bad=bad,
    )
