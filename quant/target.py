"""What a bundle is to be served on, as far as it decides which kernels the engine has."""

import platform
import re
from typing import Literal, get_args

from capture.errors import ConfigError
from capture.host import CPUINFO, largest_int8_weight, this_host

Target = Literal["avx2", "avx512", "amx", "arm", "turing", "ampere", "ada", "hopper", "blackwell"]
TARGETS: tuple[Target, ...] = get_args(Target)
CPUS: tuple[Target, ...] = ("avx2", "avx512", "amx", "arm")
# NVIDIA's compute capabilities, the first that each name stands for.
CAPABILITIES: tuple[tuple[tuple[int, int], Target], ...] = (
    ((10, 0), "blackwell"),
    ((9, 0), "hopper"),
    ((8, 9), "ada"),
    ((8, 0), "ampere"),
    ((0, 0), "turing"),
)
FLAGS = re.compile(r"^flags\s*:(.*)$", re.MULTILINE)


def find_target(name: str | None) -> Target:
    """Return the target of this name, or this machine.

    Raises:
        ConfigError: If there is none.
    """
    if name is None:
        return this_target()
    for target in TARGETS:
        if target == name:
            return target
    raise ConfigError(f"--target is {name!r}, expected one of {', '.join(TARGETS)}")


def this_target() -> Target:
    """Return what the engine that is installed here runs on."""
    if this_host() == "cpu":
        return cpu_target(CPUINFO.read_text(encoding="utf-8"), platform.machine())
    import torch  # noqa: PLC0415 - seconds to load, and only a GPU needs it

    return gpu_target(torch.cuda.get_device_capability())


def cpu_target(cpuinfo: str, machine: str) -> Target:
    """Name a CPU that Linux describes."""
    if machine in ("aarch64", "arm64"):
        return "arm"
    found = FLAGS.search(cpuinfo)
    flags = set(found.group(1).split()) if found else set()
    if "amx_tile" in flags:
        return "amx"
    return "avx512" if "avx512f" in flags else "avx2"


def gpu_target(capability: tuple[int, int]) -> Target:
    """Name a GPU by its compute capability."""
    return next(name for least, name in CAPABILITIES if capability >= least)


def largest_int8(target: Target) -> int:
    """Return up to which weight the engine's INT8 products are exact there."""
    if target == this_target():
        return largest_int8_weight()
    return 64 if target == "avx2" else 127  # see capture.host.saturates_int8
