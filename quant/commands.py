"""``retort quantize``: from a checkpoint to a bundle, and the table of schemes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from capture.config import load as load_capture
from capture.errors import ConfigError
from capture.host import Host, this_host
from capture.log import Log
from quant.config import QuantConfig, load
from quant.schemes import SCHEMES, Scheme, find_scheme, refusal
from trainer.manifest import Manifest

run_app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog="`retort quantize matrix` shows which schemes this host serves.",
)
matrix_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def quantize_app(words: list[str], prog_name: str) -> None:
    """Run ``matrix`` if that is the first word, or else quantize the model it names."""
    if words[:1] == ["matrix"]:
        matrix_app(words[1:], prog_name=f"{prog_name} matrix")
    else:
        run_app(words, prog_name=prog_name)


@run_app.command()
def run(
    model: Annotated[Path, typer.Argument(help="Checkpoint, or any Hugging Face folder.")],
    scheme: Annotated[str, typer.Option(help="One that `retort quantize matrix` calls served.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; must not exist.")],
    config: Annotated[
        Path, typer.Option("-c", "--config", help="TOML file with tables capture and quant.")
    ] = Path("retort.toml"),
    *,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Generate with the result in a real vLLM.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Quantize a model, calibrated on the log.

    Linear layers become INT8: one scale per output channel, inputs rounded per token as they
    come. Embeddings and the output head (lm_head) keep their precision, as do tokenizer, chat
    template and generation config.
    """
    chosen = find_scheme(scheme, this_host())
    if out.exists():
        raise ConfigError(f"{out}: exists already; choose another --out or remove it")
    if not (model / "config.json").is_file():
        raise ConfigError(f"{model}: no config.json there; give a Hugging Face model folder")
    settings, log = load(config), Log(load_capture(config).log)
    manifest = _quantize(model, out, chosen, settings, log, check=check)
    if as_json:
        typer.echo(manifest.model_dump_json())
        return
    typer.echo(f"{out}  ({manifest.size_bytes / 1e6:,.1f} MB)")
    for name, value in manifest.quality.items():
        typer.echo(f"  {name:34} {value:,.4g}")


def _quantize(
    model: Path, out: Path, scheme: Scheme, config: QuantConfig, log: Log, *, check: bool
) -> Manifest:
    """Run with a bar on stderr; the libraries that take seconds to load are loaded under it."""
    from quant.screen import Screen  # noqa: PLC0415

    with Screen.opened() as screen:
        screen.say("loading torch and transformers")
        from quant.quantization import Quantization  # noqa: PLC0415
        from quant.serving import try_serving  # noqa: PLC0415
        from trainer.dataset import COLUMNS  # noqa: PLC0415

        screen.say("reading the log")
        snapshot = log.snapshot(config.where)
        table = log.read(snapshot, list(COLUMNS))
        job = Quantization.prepare(model, scheme, config, table, snapshot.model_dump(mode="json"))
        if not job.measured.num_rows:
            screen.warn("the log has no held-out row of this model's teacher; quality not measured")
        engine_log = out.with_name(f"{out.name}.engine.log")
        if not check:
            screen.warn("--no-check: whether vLLM serves the bundle has not been tried")
        return job.run(
            out, (lambda draft: try_serving(draft, config, engine_log)) if check else None, screen
        )


@matrix_app.command()
def matrix(*, as_json: JsonOption = False) -> None:
    """Show which schemes this host serves, and why not the others."""
    host = this_host()
    rows = [_describe(scheme, host) for scheme in SCHEMES]
    if as_json:
        typer.echo(json.dumps({"host": host, "schemes": rows}))
        return
    table = Table("scheme", "bits", "status", "kernel, or why not")
    for row in rows:
        bits = f"W{row['weight_bits']}A{row['activation_bits']}"
        note = f"{row['reason']}; use {row['nearest']}" if row["reason"] else row["kernel"]
        table.add_row(*(str(cell) for cell in (row["name"], bits, row["status"], note)))
    Console().print(table)


def _describe(scheme: Scheme, host: Host) -> dict[str, str | int]:
    reason = refusal(scheme, host)
    fields = asdict(scheme)
    kept = ("name", "weight_bits", "activation_bits", "library", "nearest")
    return {
        **{key: fields[key] for key in kept},
        "status": "refused" if reason else "served",
        "kernel": scheme.kernel(host),
        "reason": reason,
    }
