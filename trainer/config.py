"""The ``[trainer]`` table of ``run.toml``: what to learn from, what to make, for how long."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from capture.config import read_table
from capture.store import LogFolder
from trainer.metrics import EXACT_MATCH, LM_EVAL

LossName = Literal[
    "behaviour_cloning",
    "forward_kl",
    "forward_kl_draws",
    "reverse_kl",
    "jensen_shannon",
    "skew_kl",
    "mixed_kl",
    "renormalised_topk",
    "zero_tail",
    "shared_vocabulary_kl",
]
SHARED_VOCABULARY: LossName = "shared_vocabulary_kl"
OWN_TOKENS: frozenset[LossName] = frozenset({"behaviour_cloning", SHARED_VOCABULARY})
TrackerName = Literal["mlflow", "wandb"]
PositiveInt = Annotated[int, Field(ge=1)]


class CutConfig(BaseModel):
    """Shape of a student cut from its teacher; what is left out is chosen automatically.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Neurons kept in every MLP.
        layers: Blocks kept.
        heads: Query heads kept in every block; they keep the teacher's ``head_dim``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden_size: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    layers: PositiveInt | None = None
    heads: PositiveInt | None = None


class ScaleConfig(BaseModel):
    """Over how many processes a run is spread; what it learns does not depend on that.

    Attributes:
        processes: That ``retort distill`` starts. One that ``torchrun`` starts joins the group
            that torchrun made, of whatever size.
        launcher: What starts them and starts them again: torchrun on this machine, or Ray on a
            cluster.
        shard: ``none``: each holds the whole student; ``full``: weights under training, gradients
            and optimizer state are divided among them (FSDP2).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    processes: PositiveInt = 1
    launcher: Literal["torchrun", "ray"] = "torchrun"
    shard: Literal["none", "full"] = "none"


class TrainerConfig(BaseModel):
    """One distillation.

    Attributes:
        log: Folder of the committed log, or ``s3://bucket/prefix``.
        where: SQL filter over the log's ``examples`` view.
        teacher: Hugging Face folder of the model whose distribution was logged.
        student: Hugging Face folder to start from; without it the teacher is cut down.
        from_scratch: Take only that folder's ``config.json``, and random weights.
        lora_rank: Learn corrections of this rank of that student's linear layers, not its weights.
        fake_quantize: Train for export as this format: the student computes with weights rounded
            as ``retort quantize --scheme int4-qat`` or ``int8-qat`` will round them.
        out: Folder that receives ``checkpoint/``, ``tensorboard/`` and ``metrics.json``.
        flagged: What rows are for whose distribution a grammar or a penalty has changed:
            ``cross_entropy`` of their tokens, or ``leave_out``.
        loss: One of ``trainer.losses.LOSSES``.
        loss_share: How much of the loss that is; the rest is the generated token's cross-entropy.
        sure_share: Share of the tokens that are trained on where the teacher's likeliest is above
            0.9999; each counts for those left out.
        batch_tokens: Padded tokens per step.
        warmup: Steps of linear warm-up.
        heldout_fraction: Share of the prompts, chosen by their hash, kept for measuring: half of
            them along the way, to choose the weights that are kept, half at the end.
        metric: What weights are chosen by: ``exact_match``, ``json_valid``, ``json_f1``, a
            function of prompt, answer and reference as ``file.py:function``, or a task of
            lm-evaluation-harness as ``lm_eval:TASK``.
        duplicates: Whether answers that are there already, or nearly, are trained on: ``keep``,
            ``drop_exact``, ``drop_near`` (then what is like a held-out one is not either).
        eval_every: Steps between two looks at the former; default: a tenth of all.
        eval_rows: Most of them that are looked at.
        baseline: Whether behaviour cloning is tried beside it, for as long as the run takes.
        trackers: Told the curves beside TensorBoard, by accelerate.
        threads: CPU threads of each training process.
        device: Where the models run.
        scale: Over how many processes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    log: LogFolder
    where: str = "true"
    teacher: Path
    student: Path | None = None
    from_scratch: bool = False
    lora_rank: PositiveInt | None = None
    cut: CutConfig = CutConfig()
    fake_quantize: Literal["int8", "int4"] | None = None
    out: Path
    flagged: Literal["cross_entropy", "leave_out"] = "cross_entropy"
    loss: LossName = "forward_kl"
    loss_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    sure_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    steps: PositiveInt = 600
    batch_tokens: PositiveInt = 512
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    warmup: Annotated[int, Field(ge=0)] = 30
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    metric: str = EXACT_MATCH
    duplicates: Literal["keep", "drop_exact", "drop_near"] = "keep"
    eval_every: PositiveInt | None = None
    eval_rows: PositiveInt = 256
    baseline: bool = True
    trackers: tuple[TrackerName, ...] = ()
    seed: Annotated[int, Field(ge=0)] = 0
    threads: PositiveInt = 1
    device: Literal["cpu", "cuda"] = "cpu"
    scale: ScaleConfig = ScaleConfig()

    @model_validator(mode="after")
    def _start(self) -> "TrainerConfig":
        if self.lora_rank is not None and self.student is None:
            raise ValueError("lora_rank needs a student to correct: name its folder with student")
        if self.lora_rank is not None and self.fake_quantize is not None:
            raise ValueError(
                "fake_quantize trains the weights that are exported, lora_rank leaves them as they "
                "are: leave out one of them"
            )
        if self.from_scratch and self.student is None:
            raise ValueError("from_scratch needs a config.json: name its folder with student")
        if self.from_scratch and self.lora_rank is not None:
            raise ValueError("lora_rank corrects weights that are good: leave out from_scratch")
        return self


def load(path: Path) -> TrainerConfig:
    """Read ``[trainer]``; relative folders are taken from the file's own folder.

    Raises:
        ConfigError: If the file is unreadable, or a key or value is wrong.
    """
    config = read_table(path, "trainer", TrainerConfig)
    home = path.resolve().parent
    folders = {"log": config.log, "teacher": config.teacher, "out": config.out}
    student = None if config.student is None else home / config.student
    absolute = {name: home / folder for name, folder in folders.items()}
    file, colon, function = config.metric.rpartition(":")
    metric = f"{home / file}:{function}" if colon else config.metric
    if config.metric.startswith(LM_EVAL):
        metric = f"{LM_EVAL}{home / function}"
    return config.model_copy(update={**absolute, "student": student, "metric": metric})
