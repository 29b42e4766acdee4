"""The ``[capture]`` table of ``retort.toml``, and the reader every package's table goes through."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from capture.errors import ConfigError
from capture.redaction import RedactConfig
from capture.store import LogFolder

TABLES = ("capture", "gateway", "quant", "trainer")  # one per package
Table = TypeVar("Table", bound=BaseModel)


class CaptureConfig(BaseModel):
    """Where the log lives and how much of each distribution is kept.

    Attributes:
        log: Folder of the committed Delta tables, or ``s3://bucket/prefix``.
        spool: Folder of the segments not yet committed, on a local disk.
        mass: Probability the kept entries must reach before ``k_max`` cuts them off.
        tail_draws: Tokens drawn at each position from the mass outside the kept entries.
        sync_seconds: Longest time a written row waits for ``fsync``.
        segment_bytes: Size at which a segment is closed and may be committed.
        segment_seconds: Age at which a segment is closed and may be committed.
        commit_seconds: Pause between two commits of ``retort log commit --watch``.
        retention_days: Days that rows are kept, in whole days of UTC; None keeps them for good.
        redact: What is replaced in a text before it is written.
        buffer_bytes: Most bytes of rows that wait in memory for the spool's disk.
        overflow: What gives way when they reach it: ``shed_capture`` drops rows and counts them,
            ``shed_traffic`` lets the gateway refuse requests until there is room again.
        wait_seconds: Longest time that a client's last bytes wait for its row's sync (``strict``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    log: LogFolder = Path("log")
    spool: Path = Path("spool")
    k_min: Annotated[int, Field(ge=1)] = 1
    k_max: Annotated[int, Field(ge=1, le=1024)] = 64
    mass: Annotated[float, Field(gt=0, le=1)] = 0.995
    tail_draws: Annotated[int, Field(ge=0, le=64)] = 0
    sync_seconds: Annotated[float, Field(gt=0)] = 0.1
    segment_bytes: Annotated[int, Field(ge=4096)] = 64 * 1024 * 1024
    segment_seconds: Annotated[float, Field(gt=0)] = 5.0
    commit_seconds: Annotated[float, Field(gt=0)] = 5.0
    retention_days: Annotated[int, Field(ge=1)] | None = None
    redact: RedactConfig = RedactConfig()
    buffer_bytes: Annotated[int, Field(ge=4096)] = 64 * 1024 * 1024
    overflow: Literal["shed_capture", "shed_traffic"] = "shed_capture"
    wait_seconds: Annotated[float, Field(gt=0)] = 0.25

    @model_validator(mode="after")
    def _order(self) -> "CaptureConfig":
        if self.k_min > self.k_max:
            raise ValueError(f"k_min is {self.k_min}, expected at most k_max ({self.k_max})")
        return self


def load(path: Path) -> CaptureConfig:
    """Read ``[capture]``; relative folders are taken from the file's own folder."""
    config = read_table(path, "capture", CaptureConfig)
    home = path.resolve().parent
    return config.model_copy(update={"log": home / config.log, "spool": home / config.spool})


def read_table(path: Path, table: str, model: type[Table]) -> Table:
    """Read one table of a TOML file into its model; an absent table gives the defaults.

    Raises:
        ConfigError: If the file is unreadable, or a key or value is wrong; the message names the
            key, what was found and, for an unknown key, the nearest known one.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give an existing file with -c") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    unknown = [_unknown(key, key, TABLES) for key in document if key not in TABLES]
    if unknown:
        raise ConfigError(f"{path}: " + "; ".join(unknown))
    try:
        return model.model_validate(document.get(table, {}))
    except ValidationError as error:
        lines = [_explain(table, item, model) for item in error.errors(include_url=False)]
        raise ConfigError(f"{path}: " + "; ".join(lines)) from error


def _explain(table: str, item: ErrorDetails, model: type[BaseModel]) -> str:
    """Turn one pydantic error into a sentence that names the key and the next step."""
    location = [str(part) for part in item["loc"]]
    key = ".".join([f"[{table}]", *location])
    if item["type"] == "extra_forbidden":
        return _unknown(key, location[-1], _known_keys(model))
    message = item["msg"].removeprefix("Value error, ")
    is_table = isinstance(item["input"], dict)
    return f"{key}: {message}" if is_table else f"{key} is {item['input']!r}: {message}"


def _unknown(key: str, word: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "remove it"
    return f"{key} is not a known key; {hint}"


def _known_keys(model: type[BaseModel]) -> list[str]:
    """Every key of a table and of the tables inside it."""
    keys: list[str] = []
    pending: list[object] = [model]
    while pending:
        current = pending.pop()
        if isinstance(current, type) and issubclass(current, BaseModel):
            keys += list(current.model_fields)
            pending += [field.annotation for field in current.model_fields.values()]
        else:
            pending += getattr(current, "__args__", ())
    return keys
