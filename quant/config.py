"""The ``[quant]`` table of ``retort.toml``: what to calibrate on, and how to try the result."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from capture.config import read_table
from capture.host import SMALL_ENGINE_ARGS

PositiveInt = Annotated[int, Field(ge=1)]


class QuantConfig(BaseModel):
    """One quantization; the log is the one that ``[capture]`` names.

    Attributes:
        where: SQL filter over the log's ``examples`` view.
        calibration_rows: Examples to calibrate on.
        max_length: Tokens read of each; the rest of a longer one is left out.
        batch_tokens: Padded tokens per forward pass.
        heldout_fraction: Share of the prompts kept for measuring, where the model does not say
            which share its own training kept.
        seed: Of the choice of rows.
        threads: CPU threads of this process.
        engine_args: Flags of the vLLM that tries the result.
        engine_env: Environment of that vLLM.
        engine_timeout_seconds: How long it may take to answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: str = "true"
    calibration_rows: PositiveInt = 256
    max_length: PositiveInt = 512
    batch_tokens: PositiveInt = 4096
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    seed: Annotated[int, Field(ge=0)] = 0
    threads: PositiveInt = 1
    engine_args: tuple[str, ...] = (*SMALL_ENGINE_ARGS, "--max-num-seqs", "4")
    engine_env: dict[str, str] = Field(default_factory=dict)
    engine_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0


def load(path: Path) -> QuantConfig:
    """Read ``[quant]``.

    Raises:
        ConfigError: If the file is unreadable, or a key or value is wrong.
    """
    return read_table(path, "quant", QuantConfig)
