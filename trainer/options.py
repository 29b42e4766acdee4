"""What the commands of ``retort distill`` share: options, and checks of what those name."""

from pathlib import Path
from typing import Annotated

import typer

from capture.delta import store_errors
from capture.errors import ConfigError
from capture.log import Log
from trainer.config import TrainerConfig, load

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file with a [trainer] table.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(envvar="OPENAI_API_KEY", help="Key; better set in the environment."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def given_config(path: Path | None) -> TrainerConfig:
    """Read the configuration that a command was given.

    Raises:
        ConfigError: If it was given none, or a wrong one.
    """
    if path is None:
        raise ConfigError("no configuration: give a TOML file with a [trainer] table by -c")
    return load(path)


def open_log(config: TrainerConfig) -> Log:
    """The log, once it and the models are seen to be there.

    Raises:
        ConfigError: If one is not.
    """
    with store_errors(config.log):
        is_there = config.log.is_dir()
    if not is_there:
        raise ConfigError(f"[trainer].log is {config.log}: no such folder; give the log's folder")
    for name, folder in (("teacher", config.teacher), ("student", config.student)):
        if folder is not None and not (folder / "config.json").is_file():
            raise ConfigError(
                f"[trainer].{name} is {folder}: no config.json there; give a Hugging Face model "
                "folder"
            )
    return Log(config.log)
