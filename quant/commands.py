"""``retort quantize``: from a checkpoint to a bundle, and what could be made of it."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from capture.config import load as load_capture
from capture.errors import ConfigError
from capture.log import Log
from quant.config import load
from quant.llamacpp.extra import check as check_gguf
from quant.schemes import SCHEMES, Scheme, find_scheme, refusal
from quant.target import TARGETS, Target, find_target, this_target

if TYPE_CHECKING:
    from quant.quantization import Quantization, Trial, Wish
    from quant.screen import Screen
    from trainer.manifest import Manifest

run_app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    epilog="`retort quantize matrix` shows which schemes this machine serves, `retort quantize "
    "sensitivity` what each layer loses.",
)
matrix_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
sensitivity_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

ModelArgument = Annotated[Path, typer.Argument(help="Checkpoint, or any Hugging Face folder.")]
ConfigOption = Annotated[
    Path, typer.Option("-c", "--config", help="TOML file with tables capture and quant.")
]
TargetOption = Annotated[
    str | None,
    typer.Option(help=f"What is to serve it: {', '.join(TARGETS)}. By default this machine."),
]
BudgetOption = Annotated[
    float, typer.Option(min=0.01, max=1, help="Of --scheme mixed: share of the layers' size.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
CONFIG = Path("retort.toml")


def quantize_app(words: list[str], prog_name: str) -> None:
    """Run ``matrix`` or ``sensitivity`` if that is the first word, or else quantize a model."""
    apps = {"matrix": matrix_app, "sensitivity": sensitivity_app}
    if words and words[0] in apps:
        apps[words[0]](words[1:], prog_name=f"{prog_name} {words[0]}")
    else:
        run_app(words, prog_name=prog_name)


@run_app.command()
def run(  # noqa: PLR0913 - one per option
    model: ModelArgument,
    scheme: Annotated[str, typer.Option(help="One that `retort quantize matrix` calls served.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; must not exist.")],
    config: ConfigOption = CONFIG,
    target: TargetOption = None,
    budget: BudgetOption = 0.35,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Publish below the floor too; the bundle says so.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Try the result in its engine.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Quantize a model, calibrated on the log.

    Embeddings keep their precision, the output head (lm_head) too unless --scheme mixed gives it
    fewer bits, as do tokenizer, chat template and generation config. The schemes gguf-* are for
    llama.cpp, which needs the extra `gguf`, and round embeddings and head too.
    """
    where = find_target(target)
    chosen = find_scheme(scheme, where)
    if out.exists():
        raise ConfigError(f"{out}: exists already; choose another --out or remove it")
    if chosen.method == "gguf":
        check_gguf(model)
    from quant.quantization import Wish  # noqa: PLC0415 - loads torch

    wish = Wish(chosen, where, budget, is_forced=force)
    is_here = where == this_target()
    manifest = _quantize(model, out, wish, config, check=check and is_here)
    if as_json:
        typer.echo(manifest.model_dump_json())
        return
    typer.echo(f"{out}  ({manifest.size_bytes / 1e6:,.1f} MB)")
    for name, value in manifest.quality.items():
        typer.echo(f"  {name:34} {value:,.4g}")


@sensitivity_app.command()
def sensitivity(
    model: ModelArgument,
    config: ConfigOption = CONFIG,
    target: TargetOption = None,
    budget: BudgetOption = 0.35,
    out: Annotated[
        Path | None, typer.Option(help="Folder for sensitivity.json and sensitivity.html.")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Try every group of layers that vLLM computes as one in every format it can have.

    One group is rounded at a time, all others stay as they are; KL to the unquantized model is
    taken over calibration rows of the log. The formats that --scheme mixed would choose under the
    budget are marked.
    """
    where = find_target(target)
    scheme = find_scheme("mixed", where)
    from quant.screen import Screen  # noqa: PLC0415

    with Screen.opened() as screen:
        from quant.quantization import Wish  # noqa: PLC0415 - loads torch
        from quant.sensitivity_report import document, write_page  # noqa: PLC0415

        job = _prepared(model, Wish(scheme, where, budget), config, screen)
        found = job.search(screen)
        content = document(found, budget)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            text = json.dumps(content, indent=2) + "\n"
            (out / "sensitivity.json").write_text(text, encoding="utf-8")
            write_page(content, out / "sensitivity.html")
    if as_json:
        typer.echo(json.dumps(content))
        return
    table = Table(
        Column("group", overflow="fold"), "format", "bytes", "KL, nats", "same top token", "chosen"
    )
    for row in content["rows"]:
        figures = f"{row['kl_nats']:.2e}", f"{row['top1_agreement']:.1%}"
        chosen = "yes" if row["chosen"] else ""
        table.add_row(row["group"], row["format"], f"{row['size_bytes']:,}", *figures, chosen)
    Console().print(table)


@matrix_app.command()
def matrix(
    models: Annotated[
        list[Path] | None, typer.Argument(help="Models to quantize by every scheme, and measure.")
    ] = None,
    config: ConfigOption = CONFIG,
    out: Annotated[
        Path, typer.Option(help="Folder for the bundles, matrix.json and matrix.html.")
    ] = Path("matrix"),
    schemes: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show which schemes this machine serves, and why not the others; or measure them on models.

    With models, every one of them is quantized by every scheme that is served here, tried in vLLM
    and measured on held-out rows of the log beside the model as it is.
    """
    where = this_target()
    if models:
        _measure_all(models, config, out, schemes, as_json=as_json)
        return
    rows = [_describe(scheme, where) for scheme in SCHEMES]
    if as_json:
        typer.echo(json.dumps({"target": where, "schemes": rows}))
        return
    table = Table("scheme", "bits", "status", "made by", "kernel, or why not")
    for row in rows:
        bits = f"W{row['weight_bits']}A{row['activation_bits']}"
        note = f"{row['reason']}; use {row['nearest']}" if row["reason"] else row["kernel"]
        cells = (row["name"], bits, row["status"], row["library"], note)
        table.add_row(*(str(cell) for cell in cells))
    Console().print(table)


def _measure_all(
    models: list[Path], config: Path, out: Path, schemes: str | None, *, as_json: bool
) -> None:
    where = this_target()
    names = schemes.split(",") if schemes else None
    chosen = [find_scheme(name, where) for name in names] if names else None
    for scheme in chosen or ():
        if scheme.engine != "vLLM":
            raise ConfigError(
                f"--schemes: {scheme.name} is for {scheme.engine}, the matrix measures in vLLM; "
                f"make it with `retort quantize MODEL --scheme {scheme.name}`"
            )
    from quant.screen import Screen  # noqa: PLC0415

    with Screen.opened() as screen:
        from quant.matrix import measure_models  # noqa: PLC0415 - loads torch
        from quant.matrix_report import write_page  # noqa: PLC0415

        log = Log(load_capture(config).log)
        content = measure_models(models, load(config), log, out, chosen, screen)
        write_page(content, out / "matrix.html")
    typer.echo(json.dumps(content) if as_json else f"{out / 'matrix.html'}\n{content['advice']}")


def _prepared(model: Path, wish: "Wish", config: Path, screen: "Screen") -> "Quantization":
    """Read the log; the libraries that take seconds to load are loaded under the bar."""
    if not (model / "config.json").is_file():
        raise ConfigError(f"{model}: no config.json there; give a Hugging Face model folder")
    settings, log = load(config), Log(load_capture(config).log)
    screen.say("loading torch and transformers")
    from quant.quantization import Quantization  # noqa: PLC0415
    from trainer.dataset import COLUMNS  # noqa: PLC0415

    screen.say("reading the log")
    snapshot = log.snapshot(settings.where)
    table = log.read(snapshot, list(COLUMNS))
    return Quantization.prepare(model, wish, settings, table, snapshot.model_dump(mode="json"))


def _quantize(model: Path, out: Path, wish: "Wish", config: Path, *, check: bool) -> "Manifest":
    from quant.screen import Screen  # noqa: PLC0415

    with Screen.opened() as screen:
        job = _prepared(model, wish, config, screen)
        if job.heldout is None:
            screen.warn("the log has no held-out row of this model's teacher; quality not measured")
        if not check:
            engine = wish.scheme.engine
            screen.warn(f"whether {engine} serves the bundle on its target has not been tried")
            return job.run(out, None, screen)
        return job.run(out, _trial(job, out), screen)


def _trial(job: "Quantization", out: Path) -> "Trial":
    """What tries a finished folder in the engine that is to serve it."""
    if job.wish.scheme.engine == "llama.cpp":
        from quant.llamacpp.trial import try_llama  # noqa: PLC0415 - an extra

        return partial(try_llama, checkpoint=job.model, threads=job.config.threads)
    from quant.serving import try_serving  # noqa: PLC0415 - loads torch

    log = out.with_name(f"{out.name}.engine.log")
    return partial(try_serving, config=job.config, log_path=log)


def _describe(scheme: Scheme, target: Target) -> dict[str, str | int]:
    reason = refusal(scheme, target)
    return {
        "name": scheme.name,
        "weight_bits": scheme.weight_bits,
        "activation_bits": scheme.activation_bits,
        "library": scheme.library,
        "nearest": scheme.nearest,
        "engine": scheme.engine,
        "status": "refused" if reason else "served",
        "kernel": scheme.kernel(target),
        "reason": reason,
    }
