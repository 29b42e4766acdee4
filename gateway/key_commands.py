"""``retort key``: who may ask the gateway, and how much; read and written in its state store."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from gateway.config import GatewayConfig, load
from gateway.keys import ApiKey, Quota, digest_of, new_secret, shown
from gateway.keystore import KeyStore, Used
from gateway.privacy import STRICTEST_FIRST
from gateway.secret_files import key_pepper, make_folder

key_app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Who may ask the gateway, and how much; a running gateway knows within a second.",
)
Config = Annotated[Path, typer.Option("-c", "--config", help="The gateway's configuration.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Pepper = Annotated[
    str | None,
    typer.Option(envvar="RETORT_KEY_PEPPER", help="Default: run_dir/key.pepper, made if missing."),
]
DEFAULT = Path("retort.toml")
Limit = Annotated[int | None, typer.Option(min=1)]


@key_app.command()
def create(  # noqa: PLR0913  one option each
    *,
    tenant: Annotated[str, typer.Option(help="Whose requests these will be.")],
    trusted: Annotated[
        bool, typer.Option("--trusted", help="May use fields that reach into the engine.")
    ] = False,
    capture: Annotated[
        str, typer.Option(help="The most that is kept: full, text or off.")
    ] = "full",
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    token_budget: Limit = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days until it ends.")] = None,
    config: Config = DEFAULT,
    pepper: Pepper = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once."""
    policy = next((word for word in STRICTEST_FIRST if word == capture), None)
    if policy is None:
        raise typer.BadParameter(f"{capture!r}: expected full, text or off", param_hint="--capture")
    settings = load(config)
    key_id, secret = new_secret()
    now = datetime.now(UTC)
    with opened(settings) as store:
        key = ApiKey(
            id=key_id,
            tenant=tenant,
            digest=digest_of(key_pepper(settings.run_dir, pepper), secret.encode()),
            created_at=now,
            trusted=trusted,
            capture=policy,
            quota=Quota(requests_per_minute, tokens_per_minute, token_budget),
            expires_at=None if days is None else now + timedelta(days=days),
        )
        store.add(key)
    text = shown(key_id, secret)
    if as_json:
        typer.echo(orjson.dumps({**described(key), "key": text}).decode())
    else:
        typer.echo(text)
        Console(stderr=True).print("This is shown once. It is kept as a digest only.")


@key_app.command("list")
def list_keys(*, config: Config = DEFAULT, as_json: AsJson = False) -> None:
    """Show every key and what it has used."""
    with opened(load(config)) as store:
        keys = store.keys()
    if as_json:
        rows = [{**described(key), "used": asdict(used)} for key, used in keys.items()]
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    Console(stderr=True, markup=False).print(table(keys))


@key_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="As `retort key list` shows it.")],
    config: Config = DEFAULT,
) -> None:
    """End a key; requests under way finish."""
    with opened(load(config)) as store:
        store.revoke(key_id)


@contextmanager
def opened(settings: GatewayConfig) -> Iterator[KeyStore]:
    """The state store of a configuration."""
    make_folder("[gateway].run_dir", settings.run_dir)
    store = KeyStore(settings.state_store)
    try:
        yield store
    finally:
        store.close()


def described(key: ApiKey) -> dict[str, object]:
    """A key without its digest."""
    fields = asdict(key)
    del fields["digest"]
    return fields


def table(keys: dict[ApiKey, Used]) -> Table:
    """Keys for people."""
    columns = ("id", "tenant", "state", "keeps", "requests", "tokens", "budget")
    found = Table(*columns, box=None)
    found.columns[0].no_wrap = True
    for key, used in keys.items():
        valid = "trusted" if key.trusted else "valid"
        state = valid if key.is_valid(datetime.now(UTC)) else "ended"
        budget = "" if key.quota.token_budget is None else f"{key.quota.token_budget:,}"
        counts = (f"{used.requests:,}", f"{used.tokens:,}", budget)
        found.add_row(key.id, key.tenant, state, key.capture, *counts)
    return found
