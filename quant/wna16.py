"""A kernel that vLLM's CPU build lacks: rounded weights times inputs as they come.

vLLM's own takes 4-bit weights only, needs AVX-512 and bfloat16, and without them ends the engine
at the first request. This one leaves the product to torch, which has it for AVX2 too and for 8-bit
weights. vLLM finds it by the entry point ``vllm.general_plugins``, in whatever process serves a
model.

Shape suffixes: N tokens, O output channels, I input channels, G groups of input channels.
"""

import os

import torch
from vllm.model_executor.kernels.linear import register_linear_kernel
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import (
    MPLinearKernel,
    MPLinearLayerConfig,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    unpack_quantized_values_into_int32,
)
from vllm.platforms import current_platform
from vllm.platforms.interface import PlatformEnum
from vllm.scalar_type import scalar_types

from capture.host import dtype_args

GROUP_SIZES = (32, 64, 128, 256)  # of torch's product for 4 bits
WHOLE_CHANNEL = -1
OUTPUT_BLOCK = 16
DISABLED = "VLLM_DISABLED_KERNELS"
VLLMS_OWN = "CPUWNA16LinearKernel"


class TorchWNA16LinearKernel(MPLinearKernel):
    """Symmetric weights in groups of 4 bits, or in 8 bits with one scale per output channel."""

    @classmethod
    def get_min_capability(cls) -> int:
        """No GPU is needed."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Whether the weights are of a kind and shape that torch multiplies, and why not."""
        outputs = c.partition_weight_shape[1]
        groups = {scalar_types.uint4b8: GROUP_SIZES, scalar_types.uint8b128: (WHOLE_CHANNEL,)}
        reason = None
        if c.zero_points:
            reason = "zero points: expected symmetric weights"
        elif outputs % OUTPUT_BLOCK:
            reason = f"{outputs} outputs: expected a multiple of {OUTPUT_BLOCK}"
        elif c.weight_type not in groups:
            reason = f"{c.weight_type}: expected uint4b8 or uint8b128"
        elif c.group_size not in groups[c.weight_type]:
            reason = f"groups of {c.group_size}: expected one of {groups[c.weight_type]}"
        return reason is None, reason

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Lay weights and scales out as torch's product takes them."""
        packed, scale_OG, _ = self._get_weight_params(layer)
        kind = self.config.weight_type
        values_OI = unpack_quantized_values_into_int32(packed.data, kind, packed.packed_dim)
        if packed.input_dim == 0:
            values_OI, scale_OG = values_OI.t(), scale_OG.t()
        if kind == scalar_types.uint4b8:
            values = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values_OI.contiguous(), 1)
            steps_GO = scale_OG.data.t()
            scale = torch.stack([steps_GO, torch.zeros_like(steps_GO)], dim=-1)
        else:
            values, scale = (values_OI - 128).to(torch.int8), scale_OG.data[:, 0]
        self._transform_param(layer, self.w_q_name, lambda _: values.contiguous())
        self._transform_param(layer, self.w_s_name, lambda _: scale.contiguous())

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map ``(..., I)`` to ``(..., O)``."""
        values, scale, _ = self._get_weight_params(layer)
        inputs_NI = x.reshape(-1, x.shape[-1])
        if self.config.weight_type == scalar_types.uint4b8:
            group = self.config.group_size
            products_NO = torch.ops.aten._weight_int4pack_mm_for_cpu(
                inputs_NI, values, group, scale
            )
        else:
            products_NO = torch.ops.aten._weight_int8pack_mm(inputs_NI, values, scale)
        outputs: torch.Tensor = products_NO.view(*x.shape[:-1], -1)
        return outputs if bias is None else outputs + bias


def register() -> None:
    """Offer the kernel to the vLLM of this process; where vLLM's own would crash, instead of it."""
    if not current_platform.is_cpu():
        return
    register_linear_kernel(TorchWNA16LinearKernel, PlatformEnum.CPU)
    # Without bfloat16 an engine computes in float32 (`capture.host.dtype_args`).
    if not torch.cpu._is_avx512_supported() or dtype_args():
        disabled = os.environ.get(DISABLED, "")
        os.environ[DISABLED] = ",".join(filter(None, (disabled, VLLMS_OWN)))
