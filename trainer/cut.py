"""A smaller model cut out of a teacher, close to it before any training.

Shape suffixes: D teacher width, W student width, R rows kept of an attention projection,
I neurons kept.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from trainer.importance import Importance
from trainer.shape import Shape, group_size


@torch.no_grad()
def cut(
    teacher: PreTrainedModel, importance: Importance, shape: Shape, dtype: torch.dtype
) -> PreTrainedModel:
    """Keep a teacher's most important parts; with the teacher's own shape, keep its function.

    The residual stream is rotated to its principal directions and the leading ones are kept: a
    plain model can hold that, because the gains of the norms are first folded into the matrices
    that read them. Tied embeddings leave no matrix for the last norm's gain; it becomes the
    nearest diagonal in the new directions.

    Args:
        teacher: A Llama or Qwen3 model without biases.
        importance: Measured on that teacher.
        shape: Nowhere larger than the teacher's.
        dtype: Of the result; the arithmetic is float32.

    Source:
        Ashkboos et al. 2024, arXiv:2401.15024 (rotate, then slice); one rotation for all layers,
        so that the result needs no matrices on its residual connections.
    """
    config = _config(teacher.config, shape)
    student = AutoModelForCausalLM.from_config(config, dtype=dtype).to(teacher.device)
    knife = _Knife(teacher, importance, shape, importance.basis_DD[:, : shape.hidden_size])
    weights = knife.stem()
    kept = sorted(importance.layers_L[: shape.layers])
    for place, layer in enumerate(kept):
        prefix = f"model.layers.{place}."
        weights |= {prefix + name: value for name, value in knife.block(layer).items()}
    student.load_state_dict(weights, strict=not config.tie_word_embeddings)
    return student.eval()


@dataclass(frozen=True, slots=True)
class _Knife:
    """Cuts one teacher to one shape, a matrix at a time."""

    teacher: PreTrainedModel
    importance: Importance
    shape: Shape
    basis_DW: Tensor

    def stem(self) -> dict[str, Tensor]:
        """Embeddings, last norm, output projection."""
        model = self.teacher.model
        gain_D, basis_DW = model.norm.weight.float(), self.basis_DW
        weights = {"model.embed_tokens.weight": model.embed_tokens.weight.float() @ basis_DW}
        if self.teacher.config.tie_word_embeddings:
            gain_W = gain_D @ basis_DW.square()
            return weights | {"model.norm.weight": gain_W * self._rescale}
        head_VD = self.teacher.lm_head.weight.float()
        weights["model.norm.weight"] = torch.full_like(basis_DW[0], self._rescale)
        return weights | {"lm_head.weight": (head_VD * gain_D) @ basis_DW}

    def block(self, index: int) -> dict[str, Tensor]:
        """One decoder layer."""
        layer = self.teacher.model.layers[index]
        attention, mlp = layer.self_attn, layer.mlp
        query_R, key_R = self._heads(index)
        neurons_I = self.importance.neurons_LI[index, : self.shape.intermediate_size].sort().values
        before, after = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        gains_W = torch.full_like(self.basis_DW[0], self._rescale)
        weights = {
            "input_layernorm.weight": gains_W,
            "self_attn.q_proj.weight": self._reads(attention.q_proj, query_R, before),
            "self_attn.k_proj.weight": self._reads(attention.k_proj, key_R, before),
            "self_attn.v_proj.weight": self._reads(attention.v_proj, key_R, before),
            "self_attn.o_proj.weight": self._adds(attention.o_proj, query_R),
            "post_attention_layernorm.weight": gains_W,
            "mlp.gate_proj.weight": self._reads(mlp.gate_proj, neurons_I, after),
            "mlp.up_proj.weight": self._reads(mlp.up_proj, neurons_I, after),
            "mlp.down_proj.weight": self._adds(mlp.down_proj, neurons_I),
        }
        if self.teacher.config.model_type == "qwen3":
            weights["self_attn.q_norm.weight"] = attention.q_norm.weight
            weights["self_attn.k_norm.weight"] = attention.k_norm.weight
        return weights

    @property
    def _rescale(self) -> float:
        """A vector keeps its length but has fewer entries, so its RMS grows: undo that."""
        return math.sqrt(self.teacher.config.hidden_size / self.shape.hidden_size)

    def _heads(self, index: int) -> tuple[Tensor, Tensor]:
        """Rows of the query and of the key projection that the kept groups own."""
        width, group = self.teacher.config.head_dim, group_size(self.teacher.config)
        kept = self.importance.groups_LG[index, : self.shape.heads // group].sort().values
        query_R, key_R = (
            (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()
            for size in (group * width, width)
        )
        return query_R, key_R

    def _reads(self, linear: torch.nn.Linear, rows: Tensor, gain_D: Tensor) -> Tensor:
        return (linear.weight[rows].float() * gain_D.float()) @ self.basis_DW

    def _adds(self, linear: torch.nn.Linear, columns: Tensor) -> Tensor:
        return self.basis_DW.T @ linear.weight[:, columns].float()


def _config(config: PretrainedConfig, shape: Shape) -> PretrainedConfig:
    document = config.to_dict() | {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads // group_size(config),
    }
    if "layer_types" in document:
        document["layer_types"] = document["layer_types"][: shape.layers]
    return type(config).from_dict(document)
