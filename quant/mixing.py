"""A format for every group of layers, chosen by what each loses, under a budget of bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from quant.calibration import Sample
from quant.compressor import group_size, linear_layers, output_head
from quant.config import QuantConfig
from quant.errors import CompressionError
from quant.formats import Format, int4, int8, int8_weight
from quant.groups import Groups, fused_groups
from quant.knapsack import Choice, choose
from quant.paged import Keep
from quant.reference import Reference
from quant.screen import Screen
from quant.sensitivity import AS_IT_IS, Finding, count_looks, measure, options


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What a search found.

    Attributes:
        findings: Of every group in every format.
        groups: Names of the layers of each.
        formats: By name.
    """

    findings: list[Finding]
    groups: Groups
    formats: Mapping[str, Format]

    @property
    def stored_bytes(self) -> int:
        """Of all layers as they are."""
        return sum(each.size_bytes for each in self.findings if each.format == AS_IT_IS)

    def choose(self, budget: float) -> Choice:
        """Choose formats under a share of the size that the layers have as they are.

        Raises:
            CompressionError: If no choice is that small.
        """
        choices = options(self.findings)
        choice = choose(choices, int(budget * self.stored_bytes))
        if choice is None:
            least = sum(min(option.size for option in group) for group in choices.values())
            raise CompressionError(
                f"no choice of formats takes {budget:.1%} of the layers' size, the smallest takes "
                f"{least / self.stored_bytes:.1%}: give a larger --budget"
            )
        return choice

    def formats_of(self, choice: Choice) -> dict[str, Format]:
        """The format of every layer that a choice rounds."""
        return {
            layer: self.formats[name]
            for group, name in choice.names.items()
            if name != AS_IT_IS
            for layer in self.groups[group]
        }


def search(
    model: PreTrainedModel,
    sample: Sample,
    config: QuantConfig,
    largest: int,
    keep: Keep,
    screen: Screen,
) -> Sensitivity:
    """Try every group of layers in every format that it can have.

    The output head is among them where it is a layer of its own; embeddings are not, since the
    engine looks rounded ones up on GPUs only.

    Args:
        model: Unquantized; it is left as it was.
        sample: Rows of the log.
        config: How many of them to look at, and how.
        largest: Weight of INT8 on the target.
        keep: Where states of the model are kept.
        screen: Shows the progress.

    Raises:
        CompressionError: If the model has no layer to quantize, or one of odd width, or no row
            has a token of an answer.
    """
    layers = linear_layers(model)
    each = (int8(largest), int4(group_size(layers, config.group_size)), int8_weight())
    eight, four, eight_weight = each
    groups = fused_groups(layers)
    to_try = dict.fromkeys(groups, (eight, four))
    if head := output_head(model):
        groups = groups | fused_groups(head)
        to_try |= dict.fromkeys(head, (eight_weight, four))
    thinned = _thin(sample, config.sensitivity_rows)
    reference = Reference.of(model, thinned, config.batch_tokens, keep)
    if reference is None:
        raise CompressionError(
            f"no token of an answer among the {len(thinned.sequences)} rows that formats are to be "
            "tried on: give a larger `max_length`, or widen `where` in [quant]"
        )
    screen.say(f"trying {len(groups)} groups of layers", count_looks(groups, to_try))
    found = measure(model, layers | head, groups, to_try, reference, screen.advance)
    return Sensitivity(found, groups, {format_.name: format_ for format_ in each})


def _thin(sample: Sample, rows: int) -> Sample:
    """Every so-manieth row."""
    step = max(1, len(sample.sequences) // rows)
    return Sample(sample.sequences[::step][:rows], sample.prompt_lengths[::step][:rows])
