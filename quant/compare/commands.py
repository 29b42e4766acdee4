"""``retort compare``: is a student as good as its teacher, overall and where it is worst."""

from pathlib import Path
from typing import Annotated

import typer

from capture.config import load as load_capture
from capture.errors import ConfigError
from capture.log import Log
from quant.config import load
from trainer.options import KeyOption

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def compare(  # noqa: PLR0913 - one per option
    teacher: Annotated[Path, typer.Argument(help="Folder of the model that answered in the log.")],
    student: Annotated[Path, typer.Argument(help="Checkpoint, bundle or model folder.")],
    *,
    config: Annotated[
        Path, typer.Option("-c", "--config", help="TOML file with tables capture and quant.")
    ] = Path("retort.toml"),
    out: Annotated[
        Path, typer.Option(help="Folder for compare.json and compare.html; replaced there.")
    ] = Path("compare"),
    rows: Annotated[int, typer.Option(min=1, help="Held-out prompts at most.")] = 400,
    margin: Annotated[
        float, typer.Option(min=0.001, max=1, help="How much worse the student may be.")
    ] = 0.05,
    metric: Annotated[
        str, typer.Option(help="exact_match, json_valid, json_f1, or FILE.py:function.")
    ] = "exact_match",
    judge: Annotated[
        str | None, typer.Option(help="Server of OpenAI's API whose model compares answers too.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Its model.")] = None,
    api_key: KeyOption = None,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Try the teacher as the student's safety net.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json on stdout.")] = False,
) -> None:
    """Ask two models the same held-out prompts in real vLLM engines, and compare the answers.

    The verdict is non-inferior, inferior, or how many rows are missing: overall and in the worst
    slice of the traffic. The page holds texts of the log.
    """
    if (judge is None) != (judge_model is None):
        raise ConfigError("--judge and --judge-model go together: give both or neither")
    settings, log = load(config), Log(load_capture(config).log)
    from quant.screen import Screen  # noqa: PLC0415

    with Screen.opened() as screen:
        screen.say("loading transformers")
        from quant.compare.comparison import Place, Wish, compare_models  # noqa: PLC0415
        from quant.compare.judging import JudgeSpec  # noqa: PLC0415
        from quant.compare.report import write_page  # noqa: PLC0415

        spec = JudgeSpec(judge, judge_model, api_key) if judge and judge_model else None
        wish = Wish(rows, margin, metric, spec, cascade)
        content = compare_models(teacher, student, wish, Place(log, settings, out, screen))
        write_page(content, out / "compare.html")
    if as_json:
        typer.echo((out / "compare.json").read_text(encoding="utf-8"), nl=False)
        return
    typer.echo(out / "compare.html")
    for verdict in filter(None, content["verdict"].values()):
        typer.echo(verdict["sentence"])
    for found in (content["cascade"] or {}).values():
        typer.echo(found["sentence"])
    for line in content["cascade_config"]:
        typer.echo(f"in the route's table: {line}")
