"""Which compression schemes an engine serves on which machine, and why not the others (data).

What is said of CPUs with AVX-512 was measured on vLLM 0.32's CPU build, of those with AVX2 too
where docs/quantize.md says so; the reasons quote what it said. What is said of Hopper GPUs was
seen on an H100 (docs/quantize.md), of other GPUs it is what its documentation and the list of its
kernels say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from capture.errors import ConfigError
from quant.errors import SchemeError
from quant.target import CPUS, TARGETS, Target

Method = Literal["rtn", "gptq", "awq", "fp8", "nvfp4", "mxfp4", "mixed", "qat", "gguf", ""]
Kernels = Mapping[Target, str]
EngineName = Literal["vLLM", "llama.cpp"]

OURS = "retort"
COMPRESSOR = "llm-compressor 0.14.0.1"
LLAMA_CPP = "llama-cpp-python 0.3.36"
TORCH_KERNEL = "TorchWNA16 (retort's)"
WEIGHTS_ONLY = "(weights only)"  # in a kernel's name: it takes inputs as they are

INT8_KERNELS: Kernels = {
    **dict.fromkeys(CPUS, "CPUInt8ScaledMM"),
    **dict.fromkeys(("turing", "ampere", "ada", "hopper"), "CutlassInt8ScaledMM"),
}
INT8_WEIGHT_KERNELS: Kernels = {
    **dict.fromkeys(CPUS, TORCH_KERNEL),
    **dict.fromkeys(("turing", "ampere", "ada", "hopper", "blackwell"), "Marlin"),
}
INT4_KERNELS: Kernels = {
    "avx2": TORCH_KERNEL,
    **dict.fromkeys(("avx512", "amx", "arm"), "CPUWNA16"),
    **dict.fromkeys(("turing", "ampere", "ada", "blackwell"), "Marlin"),
    "hopper": "Machete",
}
FP8_KERNELS: Kernels = {
    **dict.fromkeys(("turing", "ampere"), f"MarlinFP8 {WEIGHTS_ONLY}"),
    **dict.fromkeys(("ada", "hopper", "blackwell"), "CutlassFP8ScaledMM"),
}
FP4_KERNELS: Kernels = {
    **dict.fromkeys(("ampere", "ada", "hopper"), f"MarlinNvFp4 {WEIGHTS_ONLY}"),
    "blackwell": "CutlassNvFp4",
}
MXFP4_KERNELS: Kernels = {
    **dict.fromkeys(("ampere", "ada", "hopper"), f"MarlinMxFp4 {WEIGHTS_ONLY}"),
    "blackwell": "FlashInferMxFp4",
}
GGUF_KERNELS: Kernels = dict.fromkeys(TARGETS, "llama.cpp's own; vLLM reads no GGUF")


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to store weights and compute with them.

    Attributes:
        weight_bits: Per weight of the linear layers; embeddings and output head stay as they are.
        activation_bits: Of the inputs of those layers, 16 for none.
        method: How weights are rounded; empty if nothing here makes the scheme.
        library: What makes it; empty likewise.
        kernels: Of the engine, by target; none for one where it has none.
        reason: Why the engine cannot serve it where it has none.
        nearest: Scheme to use instead there.
        engine: What serves it; the gateway starts vLLM only.
    """

    name: str
    weight_bits: int
    activation_bits: int
    method: Method = ""
    library: str = ""
    kernels: Kernels = field(default_factory=dict)
    reason: str = ""
    nearest: str = "int8"
    engine: EngineName = "vLLM"

    def kernel(self, target: Target) -> str:
        """The engine's kernel there; empty if it has none, or nothing here makes the scheme."""
        return self.kernels.get(target, "") if self.method else ""

    def rounds_inputs(self, target: Target) -> bool:
        """Whether the engine rounds what the layers take too, there."""
        return self.activation_bits < 16 and WEIGHTS_ONLY not in self.kernel(target)  # noqa: PLR2004 - bits


NO_INTEGERS = "vLLM has no INT8 products for GPUs of compute capability 10.0 and later"
SLOW_FP8 = (
    "it decodes 45 times slower than bfloat16 with dynamic scales, fails at run time with static "
    "ones, and needs AMX for blocks"
)
SCHEMES = (
    Scheme("int8", 8, 8, "gptq", OURS, INT8_KERNELS, NO_INTEGERS, "fp8"),
    Scheme("int8-qat", 8, 8, "qat", OURS, INT8_KERNELS, NO_INTEGERS, "fp8"),
    Scheme("int8-weight", 8, 16, "rtn", OURS, INT8_WEIGHT_KERNELS),
    Scheme("int4-rtn", 4, 16, "rtn", OURS, INT4_KERNELS),
    Scheme("int4-gptq", 4, 16, "gptq", OURS, INT4_KERNELS),
    Scheme("int4-awq", 4, 16, "awq", COMPRESSOR, INT4_KERNELS),
    Scheme("int4-qat", 4, 16, "qat", OURS, INT4_KERNELS),
    Scheme("mixed", 4, 8, "mixed", OURS, {**INT4_KERNELS, "blackwell": ""}, NO_INTEGERS, "fp8"),
    Scheme("fp8", 8, 8, "fp8", COMPRESSOR, FP8_KERNELS, SLOW_FP8),
    Scheme("nvfp4", 4, 4, "nvfp4", COMPRESSOR, FP4_KERNELS, "it has no NVFP4 kernel", "int4-gptq"),
    Scheme(
        "mxfp4", 4, 4, "mxfp4", COMPRESSOR, MXFP4_KERNELS, "it has no MXFP4 kernel", "int4-gptq"
    ),
    Scheme("gguf-q8_0", 8, 8, "gguf", LLAMA_CPP, GGUF_KERNELS, engine="llama.cpp"),
    Scheme("gguf-q4_k_m", 4, 8, "gguf", LLAMA_CPP, GGUF_KERNELS, engine="llama.cpp"),
    Scheme(
        "w4a8",
        4,
        8,
        reason="it has no packed kernel without AMX and runs 15 times slower than bfloat16",
        nearest="int4-gptq",
    ),
)


def find_scheme(name: str, target: Target) -> Scheme:
    """Return a scheme that a target serves.

    Raises:
        ConfigError: If there is no scheme of this name.
        SchemeError: If the target cannot serve it.
    """
    by_name = {scheme.name: scheme for scheme in SCHEMES}
    if name not in by_name:
        raise ConfigError(
            f"--scheme is {name!r}, expected one of {', '.join(by_name)}; "
            "`retort quantize matrix` says what this machine serves"
        )
    scheme = by_name[name]
    if why := refusal(scheme, target):
        raise SchemeError(f"{name}: {why}; use {scheme.nearest}")
    return scheme


def served(target: Target) -> tuple[Scheme, ...]:
    """Schemes that vLLM serves on a target, in the order of the table."""
    return tuple(s for s in SCHEMES if s.engine == "vLLM" and s.kernel(target))


def refusal(scheme: Scheme, target: Target) -> str:
    """Say why a target does not serve a scheme; empty if it does."""
    if scheme.kernel(target):
        return ""
    if not scheme.method:
        return f"not made by this retort, and not worth it: {scheme.reason}"
    elsewhere = [name for name in TARGETS if scheme.kernel(name)]
    return (
        f"not served by vLLM on {target} because {scheme.reason}; served on {', '.join(elsewhere)}"
    )
