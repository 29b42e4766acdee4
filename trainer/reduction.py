"""From a teacher and the log to the student that training starts from."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from trainer.config import CutConfig
from trainer.cut import cut
from trainer.dataset import Dataset, Ints
from trainer.errors import ModelError
from trainer.evaluation import evaluate
from trainer.importance import measure
from trainer.packing import collate, epoch_batches
from trainer.shape import Shape, choose, num_parameters, shape_of

FAMILIES = ("llama", "qwen3")
SHRINK = 4  # the teacher has at least so many parameters for one of the student's
TOKENS_PER_DIRECTION = 16  # run to find the directions of the residual stream
PROBE_TOKENS = 1536  # run to measure the damage of one candidate
BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Reduction:
    """Cuts a teacher to at most a quarter of its parameters.

    Attributes:
        rows: Examples whose text may decide what is kept.
        seed: Of the choice among them.
        report: Called with a few words before each slow part.
    """

    teacher: PreTrainedModel
    dataset: Dataset
    rows: Ints
    seed: int
    report: Callable[[str], None]

    def run(self, wanted: CutConfig) -> PreTrainedModel:
        """Return a float32 student; sizes that ``wanted`` leaves open are found by measuring.

        Raises:
            ModelError: If models of the teacher's family cannot be cut.
            ConfigError: If the wanted sizes cannot be had.
        """
        config = self.teacher.config
        _check_family(config)
        self.report("ranking the teacher's parts")
        width = config.hidden_size
        chosen = self._some(TOKENS_PER_DIRECTION * width)
        batches = epoch_batches(self.dataset.lengths[chosen], BATCH_TOKENS, (self.seed, 0))
        importance = measure(
            self.teacher,
            [collate(self.dataset, chosen[part], self.teacher.device) for part in batches],
        )
        probe = self._some(PROBE_TOKENS)

        def damage(shape: Shape) -> float:
            self.report("trying " + ", ".join(f"{k} {v}" for k, v in asdict(shape).items()))
            candidate = cut(self.teacher, importance, shape, self.teacher.dtype)
            return evaluate(candidate, self.dataset, probe, BATCH_TOKENS).distance_nats

        budget = num_parameters(config, shape_of(config)) // SHRINK
        shape = choose(config, wanted, budget, damage)
        return cut(self.teacher, importance, shape, torch.float32)

    def _some(self, tokens: int) -> Ints:
        """Random examples that hold about so many tokens, all if there are fewer."""
        order = np.random.default_rng(self.seed).permutation(self.rows)
        enough = int(np.searchsorted(self.dataset.lengths[order].cumsum(), tokens)) + 1
        return order[:enough]


def _check_family(config: PretrainedConfig) -> None:
    settings = config.to_dict()
    biases = [name for name in ("attention_bias", "mlp_bias") if settings.get(name)]
    if config.model_type not in FAMILIES or biases:
        found = f"{config.model_type} with {biases[0]}" if biases else config.model_type
        raise ModelError(
            f"the teacher is a {found} model; only {' and '.join(FAMILIES)} without biases can "
            "be cut: name a student folder with `student`"
        )
