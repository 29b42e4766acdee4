"""Which compression schemes vLLM serves on which host, and why not the others (data).

The refusals were measured on vLLM 0.32's CPU build; the reasons quote what it said.
"""

from dataclasses import dataclass

from capture.errors import ConfigError
from capture.host import Host
from quant.errors import SchemeError


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to store weights and compute with them.

    Attributes:
        weight_bits: Per weight of the linear layers; embeddings and output head stay as they are.
        activation_bits: Of the inputs of those layers, 16 for none.
        library: What makes it; empty if nothing here does.
        cpu_kernel: Of vLLM's CPU build; empty if it has none or nothing here makes the scheme.
        cuda_kernel: Of its CUDA build, likewise.
        reason: Why vLLM's CPU build cannot serve it.
        nearest: Scheme to use instead.
    """

    name: str
    weight_bits: int
    activation_bits: int
    library: str = ""
    cpu_kernel: str = ""
    cuda_kernel: str = ""
    reason: str = ""
    nearest: str = ""

    def kernel(self, host: Host) -> str:
        """The engine's kernel on a host; empty if it has none, or nothing here makes the scheme."""
        return self.cpu_kernel if host == "cpu" else self.cuda_kernel


SCHEMES = (
    Scheme("int8", 8, 8, "retort (GPTQ)", "CPUInt8ScaledMM", "CutlassInt8ScaledMM"),
    Scheme(
        "int8-weight",
        8,
        16,
        reason="its 4-bit kernel takes no 8-bit weights (uint8b128)",
        nearest="int8",
    ),
    Scheme(
        "fp8",
        8,
        8,
        reason="it decodes 45 times slower than bfloat16 with dynamic scales, fails at run time "
        "with static ones, and needs AMX for blocks",
        nearest="int8",
    ),
    Scheme(
        "w4a8",
        4,
        8,
        reason="it has no packed kernel without AMX and runs 15 times slower than bfloat16",
        nearest="int8",
    ),
    Scheme("nvfp4", 4, 4, reason="it has no NVFP4 kernel", nearest="int8"),
    Scheme("mxfp4", 4, 4, reason="it has no MXFP4 kernel", nearest="int8"),
    Scheme(
        "gguf",
        4,
        16,
        reason="it no longer reads GGUF, and the plugin that does needs Triton",
        nearest="int8",
    ),
)


def find_scheme(name: str, host: Host) -> Scheme:
    """Return a scheme that a host serves.

    Raises:
        ConfigError: If there is no scheme of this name.
        SchemeError: If the host cannot serve it.
    """
    by_name = {scheme.name: scheme for scheme in SCHEMES}
    if name not in by_name:
        raise ConfigError(
            f"--scheme is {name!r}, expected one of {', '.join(by_name)}; "
            "`retort quantize matrix` says what this host serves"
        )
    scheme = by_name[name]
    if not scheme.kernel(host):
        raise SchemeError(f"{name}: {refusal(scheme, host)}; use {scheme.nearest}")
    return scheme


def refusal(scheme: Scheme, host: Host) -> str:
    """Say why a host does not serve a scheme; empty if it does."""
    if scheme.kernel(host):
        return ""
    if host == "cpu":
        return f"not served by vLLM on this CPU because {scheme.reason}"
    return "not made by this retort"
