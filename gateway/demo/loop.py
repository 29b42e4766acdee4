"""The demo from first step to report; each step a real command or a real process."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from capture.errors import ConfigError
from gateway.demo.prompts import Prompt, load_prompts, popular, split_heldout
from gateway.demo.report import Model, Report, write_report
from gateway.demo.rollouts import Operator, Tried, try_bundle
from gateway.demo.services import command, command_json, gateway_running
from gateway.demo.steps import (
    ask_test,
    committed,
    console,
    describe,
    distill,
    engines_of,
    find_model,
    harvest,
    progress,
    with_kl,
)
from gateway.demo.throughput import PAIRS, Comparison, bench_engines, compare_throughput
from gateway.demo.traffic import Outcome
from gateway.demo.weights import count_parameters, scramble
from gateway.demo.workspace import Workspace
from quant.bundle import Lineage, publish

HELDOUT_FRACTION = 0.1
SAMPLE = 60  # prompts of one measurement with or without capture


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
    """One run.

    Attributes:
        traffic: Prompts that clients ask.
        test: Prompts that no client asks; they measure the models.
        seconds: Wall time of each step so far.
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

    def run_dir(self, name: str) -> Path:
        """Folder of one training run or bundle."""
        return self.work.home / "runs" / name


async def run(plan: Plan) -> None:
    """Run the whole loop and write the report.

    Raises:
        DemoError: If a step fails; whatever was started has ended by then.
        ConfigError: If a file or a model is missing.
    """
    started = time.perf_counter()
    demo = await prepare(plan)
    async with contextlib.AsyncExitStack() as serving, contextlib.AsyncExitStack() as bench:
        with demo.step("start the gateway and two engines to compare"):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(serving.enter_async_context(gateway_running(demo.work)))
                comparing = tasks.create_task(bench.enter_async_context(bench_engines(demo.work)))
            urls = comparing.result()
        with demo.step("capture on and off"):
            comparison = await measure_capture(demo, urls)
            await bench.aclose()
        report = await run_served(demo, comparison)
    with demo.step("compare, slice by slice"):
        report.compared = await compare(demo)
    demo.seconds["total"] = round(time.perf_counter() - started, 1)
    report.seconds = demo.seconds
    summarize(report, write_report(report, demo.work.home))


async def prepare(plan: Plan) -> Demo:
    """Get the teacher and its prompts; our own are built once and cached."""
    if (plan.teacher is None) != (plan.prompts is None):
        raise ConfigError("--teacher and --prompts go together: a teacher needs prompts to answer")
    if plan.teacher is None or plan.prompts is None:
        console.rule("[bold]teacher", align="left")
        cache = plan.out / "cache"
        await command([str(cache), "--seed", str(plan.seed)], module="trainer.support_desk")
        teacher, prompts = cache / "teacher", cache / "prompts.jsonl"
    else:
        teacher, prompts = await asyncio.to_thread(find_model, plan.teacher), plan.prompts
    traffic, test = choose_prompts(prompts, plan.test)
    work = Workspace.create(plan.out, teacher)
    work.write_config(plan.min_agreement)
    return Demo(work, plan, traffic, test)


def choose_prompts(prompts: Path, test: Path | None) -> tuple[list[Prompt], list[Prompt]]:
    """Read the prompts of the traffic and the held-out ones.

    Raises:
        ConfigError: If a file is missing or malformed, or too small to hold prompts out of it.
    """
    beside = prompts.with_name("test.jsonl")
    if test is not None or beside.is_file():
        return load_prompts(prompts), load_prompts(test or beside)
    traffic, heldout = split_heldout(load_prompts(prompts), HELDOUT_FRACTION)
    if not traffic or not heldout:
        raise ConfigError(
            f"{prompts}: {len(traffic)} prompts for traffic and {len(heldout)} held out, expected "
            "some of each; give more prompts, or held-out ones with --test"
        )
    return traffic, heldout


async def measure_capture(demo: Demo, urls: tuple[str, str]) -> Comparison:
    """Compare the engine with and without the tap, and let the teacher answer the test."""
    with progress() as bar:
        task = bar.add_task("measurements", total=2 * PAIRS + 3)
        return await compare_throughput(
            urls, demo.test[:SAMPLE], demo.test, lambda: bar.advance(task)
        )


async def run_served(demo: Demo, comparison: Comparison) -> Report:
    """Everything that happens while the gateway serves."""
    work, plan = demo.work, demo.plan
    with demo.step("traffic"):
        outcomes = await harvest(work, popular(demo.traffic, plan.seed), plan.requests)
    with demo.step("commit"):
        verified = await committed(work)
        stats = await command_json(["log", "stats", "-c", str(work.config)])
    with demo.step("distill"):
        metrics = await distill(work, plan.steps)
    folders = {name: demo.run_dir(name) / "checkpoint" for name in metrics}
    operator = Operator(work)
    async with contextlib.AsyncExitStack() as engines:
        with demo.step("quantize, and start engines to compare"):
            async with asyncio.TaskGroup() as tasks:
                students = engines_of(work, folders)
                starting = tasks.create_task(engines.enter_async_context(students))
                making = tasks.create_task(make_bundles(demo))
            bundle, broken = making.result()
        with demo.step("rollout of the student"):
            good = await roll_out(demo, operator, bundle)
        with demo.step("rollout of a broken student"):
            bad = await roll_out(demo, operator, broken)
        with demo.step("evaluate"):
            urls = {**starting.result(), "student_int8": await operator.incumbent_url()}
            models = await evaluate(demo, urls, comparison, metrics)
    await operator.close()
    names = (str(plan.teacher or "support desk"), str(plan.prompts or "support desk"))
    return Report(
        *(*names, outcomes, verified, stats, comparison, models),
        good=good,
        bad=bad,
    )


async def make_bundles(demo: Demo) -> tuple[Path, Path]:
    """Quantize the student, and spoil a copy of it; returns both bundles."""
    bundle, broken, draft = (demo.run_dir(name) for name in ("student_int8", "broken", "draft"))
    checkpoint = demo.run_dir("student") / "checkpoint"
    words = ["--scheme", "int8", "--out", str(bundle), "-c", str(demo.work.config)]
    await command(["quantize", str(checkpoint), *words])
    await asyncio.to_thread(scramble, checkpoint, draft, demo.plan.seed)
    publish(
        *(draft, broken),
        lineage=Lineage(recipe={"scrambled": checkpoint.parent.name}),
        parameters=count_parameters(checkpoint),
        quality={},
    )
    return bundle, broken


async def roll_out(demo: Demo, operator: Operator, bundle: Path) -> Tried:
    """Try a bundle while traffic flows."""
    prompts = popular(demo.traffic, demo.plan.seed + 1)
    with progress() as bar:
        task = bar.add_task("starting", total=None)

        def show(_: Outcome, state: str) -> None:
            bar.update(task, advance=1, description=state)

        tried = await try_bundle(demo.work, operator, bundle, prompts, show)
    console.print(f"  {tried.state}: {len(tried.outcomes)} requests, {tried.failures} failed")
    return tried


async def evaluate(
    demo: Demo,
    urls: Mapping[str, str],
    comparison: Comparison,
    metrics: Mapping[str, dict[str, object]],
) -> dict[str, Model]:
    """Let every model answer the test in its own engine, one after the other."""
    rounds = {name: await ask_test(url, demo.test, name) for name, url in urls.items()}
    teacher = comparison.teacher
    models = {"teacher": describe(demo.work.teacher, teacher, teacher)}
    for name in metrics:
        folder = demo.run_dir(name) / "checkpoint"
        models[name] = with_kl(describe(folder, rounds[name], teacher), metrics[name])
    int8 = describe(demo.run_dir("student_int8"), rounds["student_int8"], teacher)
    return {**models, "student_int8": int8.with_parameters(models["student"].parameters)}


async def compare(demo: Demo) -> dict[str, object]:
    """Compare the teacher with what is live now on the log's held-out rows."""
    models = [str(demo.work.teacher), str(demo.run_dir("student_int8"))]
    words = ["-c", str(demo.work.config), "--out", str(demo.run_dir("compare"))]
    return await command_json(["compare", *models, *words])


def summarize(report: Report, page: Path) -> None:
    """Say on the terminal what the page shows."""
    document = report.document()
    console.rule("[bold]report", align="left")
    console.print(f"requests {document['requests']}, failed {document['failed_requests']}")
    console.print(f"throughput with capture / without: {report.comparison.ratio:.3f}")
    for name, model in report.models.items():
        common, rare = model.exact_match_common, model.exact_match_rare
        scored = "" if common is None or rare is None else f"exact {common:.1%} / {rare:.1%}, "
        console.print(f"  {name:13} {scored}{model.tokens_per_second:,.0f} tokens/s")
    console.print(f"rollouts: {report.good.state}, {report.bad.state}")
    console.print(f"{page.with_suffix('.json')}\n{page}")
