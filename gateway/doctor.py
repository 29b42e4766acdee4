"""``retort doctor``: what is wrong with this installation, and what to do about it."""

import asyncio
import email.utils
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import httpx
import orjson
import typer
from rich.console import Console
from rich.table import Table

from capture.errors import EngineError
from gateway.config import GatewayConfig, host_and_port
from gateway.errors import DoctorError
from gateway.findings import HOLES, Finding, clock, examine, judged
from gateway.reload import Settings
from gateway.sleep import is_sleeping

SECONDS = 60.0
SERVER_ERROR = 500
COLOURS = {"well": "green", "doubtful": "yellow", "ill": "red"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def doctor(
    config: Annotated[Path, typer.Option("-c", "--config", help="The configuration file.")] = Path(
        "retort.toml"
    ),
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Look at configuration, engines, spool, log, clocks and versions; exit 1 if anything is ill.

    Changes nothing. Engines at an address are asked for one token each.
    """
    settings = Settings.read(config)
    console = Console(stderr=True, markup=False, highlight=False)
    with console.status("looking at engines, disk and log"):
        findings = [
            Finding("configuration", "well", str(config)),
            *examine(settings),
            *asyncio.run(engines(settings.gateway)),
        ]
    if as_json:
        typer.echo(orjson.dumps([asdict(f) for f in findings], option=orjson.OPT_INDENT_2).decode())
    else:
        console.print(table(findings))
    ill = [finding for finding in findings if finding.state == "ill"]
    if ill:
        raise DoctorError(f"{len(ill)} of {len(findings)} findings need attention: {ill[0].what}")


def table(findings: Sequence[Finding]) -> Table:
    """Findings for people."""
    shown = Table("", "state", "seen", "what to do", box=None, pad_edge=False)
    for finding in findings:
        colour = COLOURS[finding.state]
        shown.add_row(finding.what, f"{finding.state}", finding.said, finding.advice, style=colour)
    return shown


async def engines(config: GatewayConfig) -> list[Finding]:
    """What is found at the addresses of the configuration: our own gateway's, and engines'."""
    async with httpx.AsyncClient(timeout=SECONDS, trust_env=False) as client:
        asked = [
            engine(client, name, url) for name, route in config.routes.items() for url in route.urls
        ]
        found = await asyncio.gather(running(client, config), *asked)
    return [finding for findings in found for finding in findings]


async def running(client: httpx.AsyncClient, config: GatewayConfig) -> list[Finding]:
    """Whether our address is free, or we are there already."""
    host, port = host_and_port(config.listen)
    here = "127.0.0.1" if host in {"0.0.0.0", "[::]"} else host  # noqa: S104  where to look
    try:
        answer = await client.get(f"http://{here}:{port}/readyz")
    except httpx.ConnectError:
        return [Finding("gateway", "well", "does not run; its address is free")]
    except httpx.HTTPError as error:
        return [Finding("gateway", "ill", f"{config.listen}: {error!r}", "see who listens there")]
    try:
        body = answer.json()
        waiting = body["waiting"]
    except (ValueError, KeyError, TypeError):
        said = f"{config.listen} is taken by somebody else"
        return [Finding("gateway", "ill", said, "choose another address")]
    if waiting:
        said = f"runs; these routes do not answer: {', '.join(waiting)}"
        return [Finding("gateway", "ill", said, f"see {config.run_dir / 'engines'}")]
    return [Finding("gateway", "well", "runs, and every route answers")]


async def engine(client: httpx.AsyncClient, route: str, url: str) -> list[Finding]:
    """Whether an engine can be reached, knows the route's model, and generates."""
    what = f"engine {url}"
    try:
        models = await client.get(f"{url}/v1/models")
        version = await client.get(f"{url}/version")
        if await sleeps(client, url):
            advice = "wake it, unless a rollout has put it to sleep"
            asleep = Finding(what, "doubtful", "sleeps: it answers nobody", advice)
            return [*of_version(version), asleep]
        body = {"model": route, "prompt": "a", "max_tokens": 1}
        began = time.monotonic()
        answer = await client.post(f"{url}/v1/completions", json=body)
    except httpx.HTTPError as error:
        said = f"{type(error).__name__} {error}".strip()
        return [Finding(what, "ill", said, "start it, or correct the url")]
    seconds = time.monotonic() - began
    return [
        *of_models(what, route, models),
        *of_version(version),
        *of_answer(what, answer, seconds),
    ]


async def sleeps(client: httpx.AsyncClient, url: str) -> bool:
    """Whether an engine says that it sleeps; one that does leaves requests waiting."""
    try:
        return await is_sleeping(client, url)
    except EngineError:
        return False


def of_models(what: str, route: str, answer: httpx.Response) -> Iterator[Finding]:
    """Whether the engine knows the model by the route's name."""
    try:
        names = [item["id"] for item in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return
    if route not in names:
        advice = f"start it with --served-model-name {route}"
        yield Finding(what, "ill", f"has no model {route!r}, but {', '.join(names)}", advice)


def of_version(answer: httpx.Response) -> Iterator[Finding]:
    """Whether vLLM has known holes, and whether its clock agrees with ours."""
    date = email.utils.parsedate_to_datetime(answer.headers["date"]) if _has_date(answer) else None
    if date is not None:
        yield clock(str(answer.url.host), date.timestamp() - time.time())
    try:
        version = answer.json()["version"]
    except (ValueError, KeyError, TypeError):
        return
    (fixed, hole) = next((fixed, hole) for name, fixed, hole in HOLES if name == "vllm")
    yield judged(f"vLLM at {answer.url.host}:{answer.url.port}", version, fixed, hole)


def _has_date(answer: httpx.Response) -> bool:
    return "date" in answer.headers


def of_answer(what: str, answer: httpx.Response, seconds: float) -> Iterator[Finding]:
    """Whether the engine generates."""
    if answer.is_success:
        yield Finding(what, "well", f"generates a token in {seconds * 1e3:.0f} ms")
    elif answer.status_code < SERVER_ERROR:
        said = f"answers, but not completions: status {answer.status_code}"
        yield Finding(what, "doubtful", said, "as it should be if it serves embeddings only")
    else:
        yield Finding(what, "ill", f"status {answer.status_code}", "see its log")
