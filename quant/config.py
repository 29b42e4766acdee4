"""The ``[quant]`` table of ``retort.toml``: what to calibrate on, and how to try the result."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from capture.config import read_table
from capture.host import SMALL_ENGINE_ARGS

PositiveInt = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class QuantConfig(BaseModel):
    """One quantization; the log is the one that ``[capture]`` names.

    Attributes:
        where: SQL filter over the log's ``examples`` view.
        calibration_rows: Examples to calibrate on.
        calibration_text: Plain text to calibrate on instead of the log, to see what that costs.
        max_length: Tokens read of each; a longer one loses the beginning of its prompt.
        batch_tokens: Padded tokens per forward pass.
        group_size: Input channels that share a step of 4 bits, of a size that CPUs and GPUs have
            kernels for; by default the largest that divides those of every layer.
        sensitivity_rows: Examples that every group of layers is tried on in every format.
        heldout_fraction: Share of the prompts kept for measuring, where the model does not say
            which share its own training kept.
        floor: Share of the parent's exactly right answers that a bundle has to keep, overall and
            in its worst slice.
        seed: Of the choice of rows.
        threads: CPU threads of this process.
        tools: Folder for the environments of tools that do not fit into this one.
        engine_args: Flags of the vLLM that tries the result.
        engine_env: Environment of that vLLM.
        engine_timeout_seconds: How long it may take to answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: str = "true"
    calibration_rows: PositiveInt = 256
    calibration_text: Path | None = None
    max_length: PositiveInt = 512
    batch_tokens: PositiveInt = 4096
    group_size: Literal[32, 64, 128] | None = None
    sensitivity_rows: PositiveInt = 64
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    floor: Share = 0.9
    seed: Annotated[int, Field(ge=0)] = 0
    threads: PositiveInt = 1
    tools: Path = Path("~/.cache/retort/tools")
    engine_args: tuple[str, ...] = (*SMALL_ENGINE_ARGS, "--max-num-seqs", "4")
    engine_env: dict[str, str] = Field(default_factory=dict)
    engine_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0


def load(path: Path) -> QuantConfig:
    """Read ``[quant]``.

    Raises:
        ConfigError: If the file is unreadable, or a key or value is wrong.
    """
    return read_table(path, "quant", QuantConfig)
