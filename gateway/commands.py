"""``retort rollout``: try a bundle on real traffic, through a running gateway's admin API."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from capture.errors import ConfigError
from gateway.admin_client import AdminClient, Json, connect
from gateway.config import GatewayConfig, load
from gateway.errors import AdminKeyError, RolloutError
from gateway.rendering import (
    Shown,
    guards_table,
    history_table,
    read_decisions,
    read_list,
    rollouts_table,
)
from gateway.rollout import canary_share
from gateway.sleep import SECONDS as SLEEP_SECONDS

POLL_SECONDS = 0.5
START_MARGIN_SECONDS = 60.0

rollout_app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Try a bundle on real traffic: shadow, canary, live, or back.",
)

Config = Annotated[
    Path, typer.Option("-c", "--config", help="The gateway's configuration; its admin_listen.")
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="RETORT_ADMIN_KEY",
        help="Admin key; better set in the environment. Default: run_dir/admin.key.",
    ),
]
Route = Annotated[str | None, typer.Option("--route", "-r", help="Model name that apps ask for.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Which = Annotated[str | None, typer.Argument(help="Rollout id; default: the one under way.")]
DEFAULT = Path("retort.toml")


@rollout_app.command()
def start(  # noqa: PLR0913  one option each
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    route: Annotated[str, typer.Option("--route", "-r", help="Model name that apps ask for.")],
    config: Config = DEFAULT,
    key: Key = None,
    *,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="For want of room for two engines: let the bundle's take the other's place; "
            "requests wait meanwhile.",
        ),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for live or rolled back.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the bundle's engine and mirror traffic to it; with --wait, exit 1 if rolled back."""
    settings = load(config)
    if route not in settings.routes:
        known = ", ".join(sorted(settings.routes))
        raise ConfigError(f"{config} has no route {route!r}; known: {known}")
    of_route = settings.routes[route]
    seconds = of_route.engine.start_timeout_seconds + START_MARGIN_SECONDS
    seconds += of_route.rollout.drain_seconds + (SLEEP_SECONDS if replace else 0)
    with _client(settings, key) as client, _progress() as progress:
        task = progress.add_task(f"starting an engine for {bundle.name}", total=None)
        body = client.start(route, str(bundle.resolve()), seconds, replace=replace)
        if wait:
            progress.remove_task(task)
            body = _await_end(client, body, progress)
    shown = _print_rollout(body, as_json=as_json)
    if wait and shown.rollout.state == "rolled_back":
        raise RolloutError(
            f"rollout {shown.rollout.id} was rolled back; `retort rollout history` says why"
        )


@rollout_app.command()
def status(
    rollout: Annotated[str | None, typer.Argument(help="Rollout id; default: all.")] = None,
    route: Route = None,
    config: Config = DEFAULT,
    key: Key = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show where rollouts stand and what their guards find."""
    with _client(load(config), key) as client:
        body = client.rollouts(route) if rollout is None else client.rollout(rollout)
    if as_json:
        _print_json(body)
        return
    every = [Shown.read(item) for item in (read_list(body) if rollout is None else [body])]
    console = _console()
    console.print(rollouts_table(every) if every else "no rollout yet")
    for shown in every:
        if shown.verdict is not None:
            console.print(guards_table(shown))


@rollout_app.command()
def promote(
    rollout: Which = None,
    route: Route = None,
    config: Config = DEFAULT,
    key: Key = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Move a rollout one stage on, whatever its guards say: shadow, canary steps or watch, live."""
    with _client(load(config), key) as client:
        body = client.promote(rollout or _under_way(client, route))
    _print_rollout(body, as_json=as_json)


@rollout_app.command()
def rollback(
    rollout: Which = None,
    reason: Annotated[str, typer.Option("--reason", help="For the history.")] = "",
    route: Route = None,
    config: Config = DEFAULT,
    key: Key = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Give all traffic back to the incumbent."""
    with _client(load(config), key) as client:
        body = client.roll_back(rollout or _under_way(client, route), reason)
    _print_rollout(body, as_json=as_json)


@rollout_app.command()
def history(
    rollout: Annotated[str | None, typer.Argument(help="Rollout id; default: the latest.")] = None,
    route: Route = None,
    config: Config = DEFAULT,
    key: Key = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show every move of a rollout with what it rested on."""
    with _client(load(config), key) as client:
        body = client.history(rollout or _latest(client, route))
    if as_json:
        _print_json(body)
    else:
        _console().print(history_table(read_decisions(body)))


@contextmanager
def _client(settings: GatewayConfig, key: str | None) -> Iterator[AdminClient]:
    """Open a client with the given key, or the one the gateway wrote into its run_dir.

    Raises:
        AdminKeyError: If there is neither.
    """
    path = settings.run_dir / "admin.key"
    if key is None:
        try:
            key = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise AdminKeyError(
                f"no admin key in {path} ({error.strerror}): start the gateway once, which writes "
                "it, or set RETORT_ADMIN_KEY"
            ) from error
    with connect(settings.admin_listen, key) as client:
        yield client


def _under_way(client: AdminClient, route: str | None) -> str:
    """Id of the one rollout that is under way.

    Raises:
        RolloutError: If there is none, or several.
    """
    every = [Shown.read(item).rollout for item in read_list(client.rollouts(route))]
    active = [rollout for rollout in every if rollout.is_active]
    if len(active) == 1:
        return active[0].id
    found = ", ".join(f"{rollout.id} ({rollout.route})" for rollout in active) or "none"
    raise RolloutError(f"rollouts under way: {found}; name one by its id")


def _latest(client: AdminClient, route: str | None) -> str:
    """Id of the rollout started last.

    Raises:
        RolloutError: If there is none.
    """
    every = [Shown.read(item).rollout for item in read_list(client.rollouts(route))]
    if not every:
        raise RolloutError("there is no rollout yet; `retort rollout start` begins one")
    return max(every, key=lambda rollout: rollout.started_at).id


def _await_end(client: AdminClient, body: Json, progress: Progress) -> Json:
    """Poll a rollout until it is live or rolled back, showing its stage and what it has seen."""
    shown = Shown.read(body)
    task = progress.add_task(shown.rollout.state, total=shown.rollout.num_stages)
    while shown.rollout.is_active:
        progress.update(task, completed=_stages_done(shown), description=_stage(shown))
        time.sleep(POLL_SECONDS)
        body = client.rollout(shown.rollout.id)
        shown = Shown.read(body)
    return body


def _stages_done(shown: Shown) -> int:
    return 1 + shown.rollout.step if shown.rollout.state == "canary" else 0


def _stage(shown: Shown) -> str:
    rollout, seen = shown.rollout, shown.rollout.evidence
    if rollout.state == "shadow":
        return f"shadow: {seen.agreed.trials} pairs, {seen.agreed.successes} agree"
    answers = seen.candidate_failed.trials
    return f"{rollout.state} at {canary_share(rollout):.0%}: {answers} answers"


def _print_rollout(body: Json, *, as_json: bool) -> Shown:
    shown = Shown.read(body)
    if as_json:
        _print_json(body)
    else:
        _console().print(rollouts_table([shown]))
    return shown


def _print_json(body: Json) -> None:
    typer.echo(orjson.dumps(body, option=orjson.OPT_INDENT_2).decode())


def _console() -> Console:
    """Words for people go to stderr; a bundle's name is no markup."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def _progress() -> Progress:
    """A bar of stages on stderr."""
    description = TextColumn("{task.description}", markup=False)
    columns = (description, BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=_console(), transient=True)
