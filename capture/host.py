"""What an engine on this machine is good at."""

import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Host = Literal["cpu", "cuda"]
CPUINFO = Path("/proc/cpuinfo")
VNNI = re.compile(r"^flags\s*:.*(_vnni|\bamx_int8)\b", re.MULTILINE)
# A small engine for demos and tests: one thread, and on a CPU one process less to start.
SMALL_ENGINE_ARGS = ("--enforce-eager", "--distributed-executor-backend", "uni")
SMALL_ENGINE_ENV: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else the CPU build insists on that process
}
USUAL_EXECUTOR = ("--distributed-executor-backend", "mp")  # after those: the process is back
X86 = re.compile(r"^flags\s*:", re.MULTILINE)  # ARM calls them features
BFLOAT16 = re.compile(r"^(flags|Features)\s*:.*\b(avx512_bf16|amx_bf16|bf16)\b", re.MULTILINE)


def this_host() -> Host:
    """Return which engine is installed: vLLM's CUDA build, or else its CPU build."""
    names = {item.metadata["Name"] for item in importlib.metadata.distributions()}
    return "cuda" if "vllm" in names else "cpu"


def has_bfloat16(cpuinfo: str) -> bool:
    """Whether a CPU, as Linux describes it, computes in bfloat16 rather than emulates it."""
    return BFLOAT16.search(cpuinfo) is not None


def saturates_int8(cpuinfo: str) -> bool:
    """Whether a CPU, as Linux describes it, loses large products of 8-bit numbers.

    x86 without VNNI adds two of them up in 16 bits, and oneDNN, which vLLM multiplies with,
    shifts activations to 0..255 for it.

    Source:
        oneDNN developer guide, "Nuances of int8 computations".
    """
    return X86.search(cpuinfo) is not None and VNNI.search(cpuinfo) is None


def largest_int8_weight() -> int:
    """Return up to which weight the engine's INT8 products are exact on this machine."""
    if this_host() == "cpu" and saturates_int8(CPUINFO.read_text(encoding="utf-8")):
        return 64  # 2 * 255 * 64 fits into 16 bits
    return 127


def dtype_args() -> tuple[str, ...]:
    """Flags that keep vLLM's CPU build from a dtype that this CPU would emulate.

    On one without bfloat16, float32 answers twice as fast, with the same weights.
    """
    if this_host() == "cuda" or has_bfloat16(CPUINFO.read_text(encoding="utf-8")):
        return ()
    return ("--dtype", "float32")
