"""``retort distill synthesize``: more answers of a teacher, and which of them are to be learned."""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.errors import EndpointError
from trainer.options import JsonOption, KeyOption
from trainer.prompts import read_prompts
from trainer.screen import Screen

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from trainer.judging import Judge


def synthesize(  # noqa: PLR0913  one option each
    prompts_path: Annotated[Path, typer.Argument(metavar="PROMPTS", help="JSONL of chats.")],
    route: Annotated[str, typer.Option(help="Route of the gateway that answers.")],
    url: Annotated[str, typer.Option(help="The gateway, such as http://127.0.0.1:8000.")],
    *,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 16,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer; default: the engine's.")
    ] = None,
    judge: Annotated[
        str, typer.Option(help="none, self (ask a model for yes or no), or FILE.py:function.")
    ] = "none",
    judge_model: Annotated[
        str | None, typer.Option(help="Route that judges with --judge self; default: the same.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="A line per prompt.")] = Path(
        "accepted.jsonl"
    ),
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask prompts through a running gateway, which captures the answers, and choose among them.

    Run again, it goes on where it was interrupted.
    """
    # The client of OpenAI takes seconds to load, and the other commands need none.
    from trainer.endpoint import check_models, open_async_endpoint  # noqa: PLC0415
    from trainer.synthesis import Ledger, Synthesis, filter_of  # noqa: PLC0415

    prompts, ledger = read_prompts(prompts_path), Ledger(out)
    todo = list(ledger.left(prompts))

    async def ask(screen: Screen) -> int:
        async with open_async_endpoint(url, api_key) as client:
            models = {route, judge_model or route}
            await check_models(client, url, models)
            chosen = _judge(judge, client, judge_model or route)
            synthesis = Synthesis(client, url, route, chosen, ledger, max_tokens)
            await synthesis.run(iter(todo), concurrency, lambda: screen.advance(1))
            return synthesis.num_failed

    try:
        with Screen.opened(len(prompts)) as screen:
            screen.say("asking")
            screen.advance(len(prompts) - len(todo))
            num_failed = asyncio.run(ask(screen))
    finally:
        ledger.close()
    where = filter_of(out)
    if as_json:
        typer.echo(json.dumps({"counts": ledger.counts, "failed": num_failed, "where": where}))
    else:
        for reason, count in ledger.counts.most_common():
            typer.echo(f"{count:8,} {reason}")
        typer.echo("to train on what was accepted only, in [trainer] of run.toml:")
        typer.echo(f"where = {json.dumps(where)}")
    if num_failed:
        raise EndpointError(f"{num_failed} prompts were not answered; run again to ask them")


def _judge(name: str, client: "AsyncOpenAI", model: str) -> "Judge":
    from trainer.judging import accept_all, function_judge, model_judge  # noqa: PLC0415

    if name == "none":
        return accept_all
    return model_judge(client, model) if name == "self" else function_judge(name)
