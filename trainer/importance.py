"""What in a teacher matters on logged text: the ranking that decides what a cut keeps.

Shape suffixes: N real tokens, D hidden width, L layers, G key-value groups, I MLP neurons,
g outputs of one group's query heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.fused import each_seen
from trainer.losses import forward_kl
from trainer.packing import Batch
from trainer.student import completion_hidden


@dataclass(frozen=True, slots=True)
class Importance:
    """Parts of a teacher, the most important ones first.

    Attributes:
        basis_DD: Orthonormal directions of the residual stream as columns, by energy; float32.
        groups_LG: Per layer, groups of query heads that share keys and values.
        neurons_LI: Per layer, MLP neurons.
        layers_L: Layers.
    """

    basis_DD: Tensor
    groups_LG: Tensor
    neurons_LI: Tensor
    layers_L: Sequence[int]


@torch.no_grad()
def measure(teacher: PreTrainedModel, batches: Sequence[Batch]) -> Importance:
    """Run the teacher and rank its parts.

    A direction's energy is its share of the residual stream wherever a norm reads it, every
    token scaled to unit RMS as the norm does. Heads and neurons count by the squared length of
    what they add to the stream, layers by the damage of skipping them.
    """
    model, config = teacher.model, teacher.config
    layers, width = config.num_hidden_layers, config.hidden_size
    sums = _Sums(
        torch.zeros(width, width, device=teacher.device),
        torch.zeros(layers, config.num_key_value_heads, device=teacher.device),
        torch.zeros(layers, config.intermediate_size, device=teacher.device),
    )
    hooks = [model.norm.register_forward_pre_hook(sums.add_residual)]
    for index, layer in enumerate(model.layers):
        watched = (
            (layer.input_layernorm, sums.add_residual),
            (layer.post_attention_layernorm, sums.add_residual),
            (layer.self_attn.o_proj, partial(sums.add_groups, index)),
            (layer.mlp.down_proj, partial(sums.add_neurons, index)),
        )
        hooks += [module.register_forward_pre_hook(hook) for module, hook in watched]
    for batch in batches:
        sums.is_real_BT = batch.is_real_BT
        model(batch.token_ids_BT, use_cache=False)
    for hook in hooks:
        hook.remove()
    return sums.ranked(_rank_layers(teacher, batches[0]))


def _rank_layers(teacher: PreTrainedModel, batch: Batch) -> list[int]:
    damage = []
    for layer in teacher.model.layers:
        hook = layer.register_forward_hook(lambda _layer, inputs, _output: inputs[0])
        damage.append(_kl(teacher, batch))
        hook.remove()
    return sorted(range(len(damage)), key=lambda index: -damage[index])


def _kl(model: PreTrainedModel, batch: Batch) -> float:
    """Mean KL to what was logged, in nats."""
    hidden_ND = completion_hidden(model, batch)
    chunks = each_seen(hidden_ND, model.lm_head.weight, batch.targets)
    return torch.cat([forward_kl(chunk.seen, chunk.targets) for chunk in chunks]).mean().item()


@dataclass(slots=True)
class _Sums:
    """Squared lengths over tokens, filled by forward hooks."""

    residual_DD: Tensor
    groups_LG: Tensor
    neurons_LI: Tensor
    is_real_BT: Tensor | None = None

    def add_residual(self, _module: nn.Module, inputs: tuple[Tensor]) -> None:
        x_ND = nn.functional.rms_norm(self._real(inputs), inputs[0].shape[-1:])
        self.residual_DD.addmm_(x_ND.T, x_ND)

    def add_groups(self, layer: int, module: nn.Linear, inputs: tuple[Tensor]) -> None:
        num_groups = self.groups_LG.shape[1]
        weight_DGg = module.weight.float().view(module.out_features, num_groups, -1)
        x_NGg = self._real(inputs).view(-1, num_groups, weight_DGg.shape[-1])
        gram_Ggg = torch.einsum("dga,dgb->gab", weight_DGg, weight_DGg)
        self.groups_LG[layer] += torch.einsum("nga,gab,ngb->g", x_NGg, gram_Ggg, x_NGg)

    def add_neurons(self, layer: int, module: nn.Linear, inputs: tuple[Tensor]) -> None:
        energy_I = self._real(inputs).square().sum(dim=0)
        self.neurons_LI[layer] += energy_I * module.weight.float().square().sum(dim=0)

    def ranked(self, layers_L: Sequence[int]) -> Importance:
        return Importance(
            torch.linalg.eigh(self.residual_DD.double()).eigenvectors.flip(1).float(),
            self.groups_LG.argsort(dim=1, descending=True),
            self.neurons_LI.argsort(dim=1, descending=True),
            layers_L,
        )

    def _real(self, inputs: tuple[Tensor]) -> Tensor:
        return inputs[0][self.is_real_BT].float()
